"""The registry of formats, for `pope convert --from`; docs/data.md lists them."""

from __future__ import annotations

from .amazon import AMAZON_2014, AMAZON_2018, AMAZON_2023
from .base import Format, Nothing, Source
from .community import COMMUNITY_ALIGNMENT
from .completions import OPENAI
from .engines import SGLANG, VLLM
from .evaluations import INSPECT, LM_EVAL
from .helpsteer import HELPSTEER2, HELPSTEER_PREFERENCE
from .instructions import ALPACA, ALPACA_EVAL, ULTRAFEEDBACK
from .nemo_rl import NEMO_RL
from .panels import OVERTON, POLIS, PRISM
from .preferences import HH_RLHF, PREFERENCE, REWARDS, SHP, UNPAIRED
from .reddit import REDDIT, REDDIT_MOVIE
from .stackexchange import STACKEXCHANGE, STACKEXCHANGE_PAIRED
from .tables import SLATES, TABLE
from .telemetry import OTEL
from .tinker import TINKER

FORMATS = {
    entry.name: entry
    for entry in (
        AMAZON_2014,
        AMAZON_2018,
        AMAZON_2023,
        REDDIT,
        REDDIT_MOVIE,
        STACKEXCHANGE,
        STACKEXCHANGE_PAIRED,
        ALPACA,
        ALPACA_EVAL,
        ULTRAFEEDBACK,
        HELPSTEER2,
        HELPSTEER_PREFERENCE,
        SHP,
        HH_RLHF,
        PRISM,
        COMMUNITY_ALIGNMENT,
        OVERTON,
        POLIS,
        PREFERENCE,
        NEMO_RL,
        UNPAIRED,
        REWARDS,
        OTEL,
        OPENAI,
        VLLM,
        SGLANG,
        TINKER,
        INSPECT,
        LM_EVAL,
        TABLE,
        SLATES,
    )
}

__all__ = ["FORMATS", "Format", "Nothing", "Source"]
