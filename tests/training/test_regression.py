"""Golden 20-step curves: a refactor that changes any method's training shows here.

After a change that is meant to alter training: `python -m pytest tests/training/test_regression.py --write-golden`.
"""

import json
from pathlib import Path

import pytest

from replication.data import prepare
from replication.runs.folder import RunFolder
from replication.training import trainer
from replication.training.world import join

GOLDEN = Path(__file__).with_name("golden.json")


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "mst"])
def test_curve_is_the_golden_one(method, tiny, data_dir, tmp_path, request):
    config = tiny(method)
    state = trainer.setup(config, RunFolder(tmp_path), join(), prepare(config.data, data_dir))
    curve = [
        {"loss": trainer.train_step(state, state.model.transformer)["loss"], "nnz": sum(state.algorithm.nnz.values())}
        for _ in range(20)
    ]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(json.dumps(golden | {method: curve}, indent=1) + "\n")
    else:
        # Processors round differently; a changed method differs in the first digits.
        assert [row["loss"] for row in curve] == pytest.approx([row["loss"] for row in golden[method]], rel=1e-4)
        assert [row["nnz"] for row in curve] == [row["nnz"] for row in golden[method]]
