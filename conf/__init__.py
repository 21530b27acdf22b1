"""YAML that differs from the dataclass defaults; installed as ``rlhf_core.conf``."""
