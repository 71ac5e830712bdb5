"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  let prompts = JSON.parse(byId("prompts").textContent);
  let shown = [];
  const choice = byId("choice"), search = byId("search"), count = byId("count"), place = byId("slate");

  const element = (tag, text, style) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (style) made.className = style;
    return made;
  };
  const short = (text) => (text.length > 90 ? text.slice(0, 90) + " …" : text);
  const listed = (numbers) => numbers.map((at) => at + 1).join(", ");

  const column = (title) => {
    const section = element("section");
    section.append(element("h3", title));
    return section;
  };
  const answer = (text, label) => {
    const block = element("div", undefined, "answer");
    block.append(element("span", label, "label"), document.createTextNode(text.trim() || "(empty)"));
    return block;
  };

  const show = () => {
    place.replaceChildren();
    const slate = shown[choice.selectedIndex];
    if (!slate) return;
    place.append(element("p", slate.prompt, "prompt"));
    const columns = element("div", undefined, "columns");
    const people = column("In the log");
    const policies = Object.keys(slate.answers);
    slate.people.forEach((each, at) => {
      const covered = policies
        .map((name) => [name, slate.answers[name].filter((a) => a.covers && a.covers.includes(at)).length])
        .filter(([, times]) => times > 0)
        .map(([name, times]) => `${name} (${times})`);
      const by = covered.length ? `; covered by ${covered.join(", ")}` : "";
      people.append(answer(each.text, `${at + 1}: score ${Number(each.score.toPrecision(4))}${by}`));
    });
    columns.append(people);
    policies.forEach((name) => {
      const section = column(name);
      slate.answers[name].forEach((each, at) => {
        const covers = each.covers === null ? "" : each.covers.length ? `; covers ${listed(each.covers)}` : "; covers none";
        section.append(answer(each.text, `answer ${at + 1}${covers}`));
      });
      columns.append(section);
    });
    place.append(columns);
  };

  const fill = () => {
    const wanted = search.value.trim().toLowerCase();
    const holds = (slate) =>
      !wanted ||
      [slate.prompt, ...slate.people.map((each) => each.text), ...Object.values(slate.answers).flat().map((each) => each.text)]
        .some((text) => text.toLowerCase().includes(wanted));
    shown = prompts.filter(holds);
    choice.replaceChildren(...shown.map((slate) => element("option", short(slate.prompt))));
    count.textContent = `${shown.length} of ${prompts.length} prompts`;
    show();
  };

  const step = (by) => {
    if (!shown.length) return;
    choice.selectedIndex = (choice.selectedIndex + by + shown.length) % shown.length;
    show();
  };
  choice.addEventListener("change", show);
  search.addEventListener("input", fill);
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));

  const more = byId("more");
  if (more) {
    window.popePrompts = (others) => {
      prompts = prompts.concat(others);
      more.hidden = true;
      byId("missing").textContent = "";
      fill();
    };
    more.addEventListener("click", () => {
      const script = element("script");
      script.src = more.dataset.file;
      script.onerror = () => {
        byId("missing").textContent =
          `The other prompts are in the file ${more.dataset.file}, which is not beside this page.`;
      };
      document.body.append(script);
    });
  }
  fill();
})();
