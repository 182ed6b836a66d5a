"""What can be set of each posterior, by its name in `posterior.name`."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from abmll.errors import AbmllError, unknown_name


class PosteriorSettings(BaseModel):
    """Settings of a posterior.

    Attributes:
        presets: settings that go together, by name. `as-published` keeps what published code does where that is not the
            published mathematics and one or two settings have it (docs/rivals.md, "As published").
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LaplaceSettings(PosteriorSettings):
    """Settings of Laplace-LoRA.

    Attributes:
        centre: mean of the Gaussian prior on the factors: `zero` as published, or `theta`, where adaptation began.
        precision: of that prior; None: where the evidence of the examples is largest; `pooled`: where that of training
            tasks, each adapted to as an unseen one, is largest in sum, learned at the end of training.
        form: of the curvature: all its entries, which few examples bear, or Kronecker factors (`kfac`).
        inputs_mean: over which the inputs' factor of `kfac` is a mean.
        samples: draws of the scores, from a Gaussian of as many dimensions as there are choices.
    """

    presets: ClassVar = {
        "default": {},
        # The factor of inputs per example: laplace-lora at 434e0a4, laplace/curvature/asdl.py, _rescale_kron_factors;
        # draws: run_gpt_laplace.py at c59665d.
        "as-published": {"centre": "zero", "form": "kfac", "inputs_mean": "examples", "samples": 100_000},
    }

    centre: Literal["theta", "zero"] = "theta"
    precision: float | Literal["pooled"] | None = None
    form: Literal["full", "kfac"] = "full"
    inputs_mean: Literal["tokens", "examples"] = "tokens"
    samples: int = Field(1000, ge=1)  # published: 1e5; a draw costs a softmax, and 1,000 leave an error of .016 at most

    @field_validator("precision")
    @classmethod
    def _above_zero(cls, value: Any) -> Any:
        if isinstance(value, float) and value <= 0:
            raise ValueError("a precision is above 0")
        return value


class TFBSettings(PosteriorSettings):
    """Settings of training-free Bayesianization.

    Attributes:
        tolerance: relative increase of the examples' NLL that is let pass.
        least, most: between which the std is looked for.
        bisections: of that interval.
        samples: draws by which an NLL is measured.
        returned: the largest std that was seen within the tolerance, or the smallest that was seen to exceed it.
    """

    presets: ClassVar = {
        "default": {},
        # The std that is returned violates the tolerance: trainers/binary_search.py:80-86 of BayesAdapt at 3843000, and
        # modelwrappers/tfblora.py:130-137 of bayesian-peft at bc6a4a7.
        "as-published": {"returned": "exceeding", "bisections": 5},
    }
    tolerance: float = Field(0.003, gt=0)  # of BayesAdapt, conf/optim/binary_search.yaml at 3843000; also the two below
    least: float = Field(0.001, gt=0)
    most: float = Field(0.2, gt=0)
    bisections: int = Field(8, ge=1)  # published: 5, which leaves .006 of the interval undecided; a step is cheap here
    samples: int = Field(10, ge=1)
    returned: Literal["within", "exceeding"] = "within"


class SWAGSettings(PosteriorSettings):
    """Settings of SWAG on the path of adaptation.

    Attributes:
        start: part of the steps before the first weights are collected.
        columns: most recent deviations of which the low-rank part is made.
        scale: of the covariance.
    """

    presets: ClassVar = {
        "default": {},
        # Twice the covariance: no 1 / sqrt 2 beside the low-rank part, SWAG.py:159-210 of swag-lora at 82a188b.
        "as-published": {"scale": 2.0},
        # Four times: the same code at its own scale of 2, b-lora-xs at 157803f.
        "b-lora-xs": {"scale": 4.0},
    }
    # Of ten steps six weights: the first has no deviation, so five columns. Published: the later half of training.
    start: float = Field(0.4, ge=0, lt=1)
    columns: int = Field(5, ge=2)  # conf/method/swag.yaml of swag-lora at 82a188b
    scale: float = Field(1.0, gt=0)


class EnsembleSettings(PosteriorSettings):
    """Settings of an ensemble of adaptations.

    Attributes:
        members: adaptations from the same theta to the same examples, each in an order of its own; the first is phi.
    """

    members: int = Field(5, ge=2)


class IVONSettings(PosteriorSettings):
    """Settings of IVON; defaults are those of ivon-lora at 043ce23 (finetune.py, ivon.sh).

    Attributes:
        lr: step size of the mean.
        ess: effective number of examples, by which stds shrink.
        hess_init: the Hessian that steps begin with.
        beta1, beta2: of momentum and Hessian.
        weight_decay: delta, precision of the prior over `ess`; published runs have none.
        clip: largest step before `lr`, for each number.
        centre: mean of the prior: `theta`, where steps begin, or `zero`.
    """

    presets: ClassVar = {
        "default": {},
        # Stds that stay where they begin, and no prior: finetune.py:41-51, 94-103 and ivon.sh of ivon-lora at 043ce23.
        # They are the defaults.
        "as-published": {"beta2": 0.99999, "weight_decay": 0.0},
    }
    lr: float = Field(0.03, gt=0)
    ess: float = Field(1e7, gt=0)
    hess_init: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99999, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1e-3, gt=0)
    centre: Literal["theta", "zero"] = "theta"


class KLSettings(PosteriorSettings):
    """What the posteriors with a KL beside the NLL have in common.

    Attributes:
        kl_schedule: `elbo`, the KL over the number of examples in every step; or `published`, most of it in late steps.
        kl_weight: multiplies the KL.
    """

    kl_schedule: Literal["elbo", "published"] = "elbo"
    kl_weight: float = Field(1.0, ge=0)


class BLoBSettings(KLSettings):
    """Settings of BLoB; numbers are those of bayesian-peft at bc6a4a7 (modelwrappers/blob.py, scripts/blob).

    Attributes:
        epsilon: largest square root of a std that steps begin with.
        prior_std: sigma_p, of the prior on A.
        centre: mean of that prior: `zero` as published, or `theta`, where steps begin.
        kl_lr: rate of SGD on the KL, and on the stds.
    """

    presets: ClassVar = {
        "default": {},
        # A KL that comes last, in a schedule longer than an adaptation: modelwrappers/blob.py:481-491, 669-677 of
        # bayesian-peft at bc6a4a7.
        "as-published": {"kl_schedule": "published"},
    }
    epsilon: float = Field(0.05, gt=0)
    prior_std: float = Field(0.2, gt=0)
    centre: Literal["theta", "zero"] = "zero"
    kl_lr: float = Field(0.02, gt=0)


class ScalaBLSettings(KLSettings):
    """Settings of ScalaBL; numbers are those of BayesAdapt at 3843000 (lorawrappers/scalabl.py, conf/optim/vi.yaml).

    Attributes:
        epsilon: largest std that steps begin with.
        prior_std: of the prior on the singular values, whose mean is 0.
        kl_lr: rate of SGD on the KL.
        kl: `elbo`, KL(q || p); or `reversed`, KL(p || q), as published.
    """

    presets: ClassVar = {
        "default": {},
        # The KL of the prior from q, nearly all of it in late steps: lorawrappers/scalabl.py of BayesAdapt at 3843000.
        "as-published": {"kl": "reversed", "kl_schedule": "published"},
    }
    epsilon: float = Field(0.05, gt=0)
    prior_std: float = Field(1.0, gt=0)
    kl_lr: float = Field(0.2, gt=0)
    kl: Literal["elbo", "reversed"] = "elbo"


class CLoRASettings(PosteriorSettings):
    """Settings of C-LoRA; numbers are those of c_lora at e706627 (modelwrappers/c_lora.py, scripts/ctx).

    Attributes:
        hidden: width of each layer's network.
        prior_std: sigma_p, of the prior on the core, whose mean is 0.
        core_lr: rate of SGD on the networks.
        kl_weight: multiplies the KL of a question, summed over its tokens, beside its NLL. The ELBO's is 1.
    """

    hidden: int = Field(64, ge=1)
    prior_std: float = Field(0.2, gt=0)
    core_lr: float = Field(0.02, gt=0)
    kl_weight: float = Field(1e-6 / 65, ge=0)  # published, and multiplied by BLoB's weights besides, which are below 1


class CoreSettings(PosteriorSettings):
    """Settings of what `method.name: core` answers by.

    Attributes:
        answers: by `draws` of the cores, each a LoRA, as many as `adaptation.samples`; or `linearised`, by draws of
            scores that are linear in the cores.
        samples: draws of the scores, where they are linearised.
        variances: the prior's V as it was `learned`; or controls, for which the examples are fitted to again:
            `permuted`, the same numbers shuffled among all cores' entries, and `pooled`, their geometric mean for all.
        permutation: number of the shuffle.
    """

    answers: Literal["draws", "linearised"] = "draws"
    samples: int = Field(1000, ge=1)
    variances: Literal["learned", "permuted", "pooled"] = "learned"
    permutation: int = Field(0, ge=0)


SETTINGS: dict[str, type[PosteriorSettings]] = {
    "laplace": LaplaceSettings,
    "tfb": TFBSettings,
    "swag": SWAGSettings,
    "ensemble": EnsembleSettings,
    "ivon": IVONSettings,
    "blob": BLoBSettings,
    "scalabl": ScalaBLSettings,
    "c-lora": CLoRASettings,
    "core": CoreSettings,
}
"""Every posterior that `posterior.name` can be, besides `none`."""


def resolve_posterior(name: str, given: dict[str, Any], preset: str = "default") -> PosteriorSettings | None:
    """The settings of a posterior: its defaults, then a preset, then what was given; None where there is none.

    Raises:
        AbmllError: unknown name, preset or setting, or a value out of range.

    >>> resolve_posterior("ensemble", {}).members, resolve_posterior("swag", {}, "as-published").scale
    (5, 2.0)
    """
    if name not in {*SETTINGS, "none"}:
        raise unknown_name("posterior", name, ("none", *SETTINGS))
    presets = PosteriorSettings.presets if name == "none" else SETTINGS[name].presets
    if preset not in presets:
        raise unknown_name(f"preset of posterior {name}", preset, presets)
    fields: dict[str, Any] = {} if name == "none" else dict(SETTINGS[name].model_fields)
    for key in given:
        if key not in fields:
            raise unknown_name(f"setting of posterior {name}", key, fields)
    if name == "none":
        return None
    try:
        return SETTINGS[name](**{**presets[preset], **given})
    except ValidationError as error:
        raise AbmllError("\n".join(map(_in_words, error.errors()))) from error


def _in_words(fault: Any) -> str:
    return f"posterior.{fault['loc'][0]}: {fault['msg'].removeprefix('Value error, ')}, found {fault['input']!r}"
