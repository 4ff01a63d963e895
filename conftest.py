"""What plain `pytest` and plain `pytest --nbval` look at; the rest of their configuration is in pyproject.toml."""

import pytest

collect_ignore = ["runs", "data", "checkpoints", "build"]


def pytest_configure(config: pytest.Config) -> None:
    """Turn `pytest --nbval` without paths to notebooks/, and find the sanitising patterns from any working folder."""
    if not hasattr(config.option, "nbval"):  # the plugin is absent, as on a machine that only runs the kernels' tests
        return
    if config.option.nbval and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = [str(config.rootpath / "notebooks")]
    patterns = config.option.nbval_sanitize_with
    if not (config.invocation_params.dir / patterns).is_file():
        config.option.nbval_sanitize_with = str(config.rootpath / patterns)
