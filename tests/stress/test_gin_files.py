"""Every run of the gin tree but those with large networks takes a step on its own network. All take some minutes.

bash launchers/test.sh tests/stress/test_gin_files.py
"""

import pytest
from experiments.test_config import SMALL, photographs, takes_a_step, tiny_data  # noqa: F401  two are fixtures


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize("file", SMALL)
def test_a_run_takes_a_step_on_its_own_network(file, tmp_path):
    takes_a_step(file, tmp_path)
