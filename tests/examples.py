"""Hypothesis for tests on any machine: no example, and no making of one, is too slow. A failure tells its example."""

from hypothesis import HealthCheck, example, given, settings

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("any machine")

__all__ = ["example", "given", "settings"]
