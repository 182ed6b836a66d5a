"""MetaICL (Min et al. 2022) and in-context tuning (Chen et al. 2022) on LoRA: training with labelled rows shown."""

from typing import ClassVar, Literal, final

from pydantic import Field, model_validator

from abmll.methods.lora import Displacement, StructuredSettings


class MetaICLSettings(StructuredSettings):
    """Settings of MetaICL.

    Attributes:
        demonstrations: k, at most so many other rows of the episode stand with their answers in front of each question,
            as many as fit in `likelihood.max_tokens`; of an unseen task all examples that fit. 0 is LoRA.
    """

    demonstrations: int = Field(16, ge=0)  # k of MetaICL (its train.py); an episode of 12 rows has 11 to show
    episodes: Literal["by_task", "mixed"] = "by_task"

    @model_validator(mode="after")
    def _rows_of_one_task(self) -> "MetaICLSettings":
        if self.demonstrations and self.episodes == "mixed":
            raise ValueError("method.episodes=mixed has no other rows of the same task to show: give by_task")
        return self


@final
class MetaICL(Displacement):
    r"""Regular LoRA whose questions have other labelled rows of their task in front of them.

    Each step descends the NLL of the answers alone, given the shots,

    $$ -\log p(y_q \mid x_1, y_1, \dots, x_k, y_k, x_q, \theta), $$

    and theta follows every step, as in LoRA: there is no inner loop. With `likelihood.kind: cloze` the NLL is over the
    question's choices, which is the loss of in-context tuning; MetaICL's is that of the answer's tokens. With
    `channel` it is that of the question's tokens behind the answer, as in channel MetaICL. Adapting to an
    unseen task shows its examples; `adaptation.steps` above 0 also takes steps, each question with the other examples
    in front (leave one out).

    >>> from abmll.methods import resolve_settings
    >>> resolve_settings("metaicl", given={"demonstrations": 4}).demonstrations
    4
    """

    settings_class: ClassVar = MetaICLSettings
    settings: MetaICLSettings

    @property
    def demonstrations(self) -> int:  # type: ignore[override]
        """k."""
        return self.settings.demonstrations
