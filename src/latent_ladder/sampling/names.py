"""Names of samplers, and the few facts about them that need no torch.

Requests are validated and plans are made with this table; the functions are in ``samplers.py``, and
a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class SamplerFacts(NamedTuple):
    """Facts about a sampler that a plan needs.

    ``evals_per_step`` times the steps plus ``extra_evals`` model evaluations make a run;
    ``needs_uncond``: it reads the negative prompt even without guidance (the CFG++ rules);
    ``stochastic``: it adds noise while sampling; ``standardised``: that noise has mean 0 and
    deviation 1 exactly.
    """

    evals_per_step: int = 1
    extra_evals: int = 0
    needs_uncond: bool = False
    stochastic: bool = False
    standardised: bool = False

    def evals(self, steps: int) -> int:
        """Model evaluations of a run of ``steps`` steps."""
        return self.evals_per_step * steps + self.extra_evals


SAMPLER_FACTS: Mapping[str, SamplerFacts] = MappingProxyType(
    {
        "euler": SamplerFacts(),
        "euler_ancestral": SamplerFacts(stochastic=True),
        "euler_cfg_pp": SamplerFacts(needs_uncond=True),
        "euler_ancestral_cfg_pp": SamplerFacts(needs_uncond=True, stochastic=True),
        "dpmpp_2m": SamplerFacts(),
        "dpmpp_2m_rf": SamplerFacts(),
        "res_2s": SamplerFacts(evals_per_step=2, extra_evals=1, stochastic=True, standardised=True),
        "res_multistep": SamplerFacts(),
        "gradient_estimation": SamplerFacts(),
        "heun": SamplerFacts(evals_per_step=2, extra_evals=-1),
        "lcm": SamplerFacts(stochastic=True),
    }
)
