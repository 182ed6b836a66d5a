"""The run configuration: its sections (`sections`), and the whole of it, read from YAML and overrides (`run`).

Only `systems` and what is built on it read it; everything else takes plain arguments.
"""

from abmll.config.run import (
    CompareConfig,
    ModelConfig,
    RunConfig,
    check,
    load_config,
    merge,
    parse_override,
    parse_overrides,
)
from abmll.config.sections import (
    AdaptationConfig,
    AdapterConfig,
    ComputeConfig,
    LeakCheck,
    LikelihoodConfig,
    MethodConfig,
    PosteriorConfig,
    SharedPath,
    TasksConfig,
    TaskSource,
    TrackingConfig,
    TrainingConfig,
)

__all__ = [
    "AdaptationConfig",
    "AdapterConfig",
    "CompareConfig",
    "ComputeConfig",
    "LeakCheck",
    "LikelihoodConfig",
    "MethodConfig",
    "ModelConfig",
    "PosteriorConfig",
    "RunConfig",
    "SharedPath",
    "TaskSource",
    "TasksConfig",
    "TrackingConfig",
    "TrainingConfig",
    "check",
    "load_config",
    "merge",
    "parse_override",
    "parse_overrides",
]
