"""OpenTelemetry's own SDK writes GenAI spans and an evaluation; they become slates.

    python examples/integrations/otel_spans.py FOLDER

Needs opentelemetry-sdk. With opentelemetry-exporter-otlp-json-file, the official writer of OTLP's JSON encoding, that
form is written and read, too.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from pope_align.data import read_slates
from pope_align.data.convert import convert

ANSWERS = [
    ("Which tea is green?", "Sencha.", 1.0),
    ("Which tea is green?", "All of them.", 0.0),
    ("Which tea is smoked?", "Lapsang souchong.", 1.0),
    ("Which tea is smoked?", "None is.", 0.25),
]


def message(role: str, text: str, **more: str) -> str:
    """A message as spans hold it: JSON text."""
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}], **more}])


def record(exporter: SpanExporter) -> None:
    """What an instrumented application does: one span for each request, with the user's rating as an event."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tea-shop")
    for question, answer, rating in ANSWERS:
        with tracer.start_as_current_span("chat tea-model", kind=trace.SpanKind.CLIENT) as span:
            span.set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.request.model": "tea-model",
                    "gen_ai.request.temperature": 0.7,
                    "gen_ai.input.messages": message("user", question),
                    "gen_ai.output.messages": message("assistant", answer, finish_reason="stop"),
                }
            )
            evaluation = {"gen_ai.evaluation.name": "thumb", "gen_ai.evaluation.score.value": rating}
            span.add_event("gen_ai.evaluation.result", evaluation)
        with tracer.start_as_current_span("look up stock"):
            pass
    provider.shutdown()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    packages = ["opentelemetry-sdk"]
    flat = folder / "flat.jsonl"
    with flat.open("w", encoding="utf-8") as file:
        record(ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n"))
    logs = [flat]
    if importlib.util.find_spec("opentelemetry.exporter.otlp.json") is not None:
        from opentelemetry.exporter.otlp.json.file import FileSpanExporter

        packages.append("opentelemetry-exporter-otlp-json-file")
        logs.append(folder / "otlp.jsonl")
        record(FileSpanExporter(str(logs[-1])))
    print(*(f"{name} {version(name)}" for name in packages), sep=", ")
    for log in logs:
        report = convert("auto", [log], folder / f"{log.stem}.slates.jsonl", overwrite=True)
        slates = read_slates(folder / f"{log.stem}.slates.jsonl")
        print(f"{log.name}: {report.format}, {len(slates)} slates, without a response: {dict(report.without_response)}")
        for slate in slates:
            print(f"  {slate.prompt[-1]['content']} {[c[0]['content'] for c in slate.completions]} {slate.scores}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
