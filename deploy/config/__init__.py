"""The config file: its sections, and how it is read, changed and written."""

from deploy.config.batch_rule import apply_batch_rule
from deploy.config.load import load
from deploy.config.sections import Config, FailureConfig, RunConfig, ScalingConfig, TaskConfig
from deploy.config.write import to_dict, to_toml

__all__ = ["Config", "FailureConfig", "RunConfig", "ScalingConfig", "TaskConfig", "apply_batch_rule", "load", "to_dict", "to_toml"]
