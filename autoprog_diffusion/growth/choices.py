"""The words that fields of `GrowthConfig` may be."""

from __future__ import annotations

from typing import Literal


Order = Literal["interleaved", "suffix", "prefix"]
Direction = Literal["unfreeze", "freeze", "window"]
WindowState = Literal["release", "park"]
Search = Literal["none", "zero_shot"]
Objective = Literal["rank_vote", "gain_per_cost", "random", "fixed"]
Cost = Literal["flops", "measured"]
Checkpointing = Literal["none", "all", "auto"]
FrozenDtype = Literal["bfloat16", "float8", "int8", "nf4"]
EmbeddingInit = Literal["zero", "normal", "carry"]
