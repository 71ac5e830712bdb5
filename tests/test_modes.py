"""Modules keep their own training mode, whatever runs in evaluation mode in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pope_align.models.modes import evaluation_mode

PACKAGE = Path(__file__).parent.parent / "python" / "pope_align"


def test_every_module_gets_its_own_mode_back_also_after_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()))
    model.train()
    model[1][0].eval()  # frozen by its owner
    before = [module.training for module in model.modules()]

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert [module.training for module in model.modules()] == before == [True, True, True, False, True]


def test_there_is_one_such_function() -> None:
    savers = {file.name for file in PACKAGE.rglob("*.py") if ".training = " in file.read_text(encoding="utf-8")}
    assert savers == {"modes.py"}
