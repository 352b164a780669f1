"""The command lines that several tests run."""


def train_command(method, out, data_dir, *more):
    """Of a run of profile smoke."""
    where = ["--out", str(out), "--data-dir", str(data_dir)]
    return ["train", "--profile", "smoke", "--method", method, *where, *more]
