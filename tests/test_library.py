"""The package as a library: its names, and methods in a loop that is not ours."""

import re
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import replication
from replication import MST, SET, MethodError, RigL, Static, UserError, constant, count, erdos_renyi, phases, uniform

STEPS = 40
IN_PHASES = phases(
    STEPS, ultra=0.9, final=0.6, warmup_end=0.3, restoration_start=0.7, restoration_end=0.9, update_freq=2
)


def is_matrix(name, parameter):
    return parameter.ndim == 2


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 4))


def batches(num=STEPS, size=16):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        inputs = torch.randn(size, 12, generator=generator)
        yield inputs, inputs[:, :4].argmax(1)


def loss_of(model, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def train(method, model, optimizer, steps=range(STEPS), **options):
    """The steps' rows of updates."""
    rows = []
    for step, batch in enumerate(batches()):
        if step in steps:
            loss_of(model, batch).backward()
            rows.append(method.step(step, optimizer, **options))
            optimizer.zero_grad()
    return rows


def applied(method, model):
    method.apply(model, is_matrix)
    return method


def check_masked(method, optimizer):
    for name, parameter in method.parameters.items():
        masked = ~method.masks[name]
        assert masked.any() and not parameter[masked].any()
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                assert not value[masked].any()


def test_its_names_are_there_and_are_imported_when_they_are_read():
    code = "import replication, sys; print('torch' in sys.modules, replication.MST.__module__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "replication.mst", "True"]
    assert all(getattr(replication, name) is not None for name in replication.__all__)
    assert set(replication.__all__) == set(replication._WHERE) and set(replication.__all__) <= set(dir(replication))
    with pytest.raises(AttributeError, match="no attribute 'mts'"):
        _ = replication.mts


def test_no_name_resolves_twice():
    """`UserError` would exist twice, and what one module raises the other would not catch."""
    names = ("replication.replication", "replication.tests", "replication.notebooks", "replication.docs")
    code = f"import importlib.util\nfor name in {names}:\n    print(importlib.util.find_spec(name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"] * len(names)
    from replication.baselines.set import SET as same

    assert same is SET


def test_methods_know_no_configuration():
    names = "replication.mst, replication.baselines.rigl, replication.baselines.set, replication.baselines.static"
    code = f"import sys, {names}; print('replication.config.run_config' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_mst_passes_its_phases_in_a_loop_of_ones_own():
    model = mlp()
    optimizer, mst = torch.optim.AdamW(model.parameters(), 1e-2), applied(MST(IN_PHASES), model)
    assert mst.sparsity() == 0
    first = loss_of(model, next(iter(batches(1)))).item()
    sparsity = []
    for step, batch in enumerate(batches()):
        loss = loss_of(model, batch)
        loss.backward()
        mst.step(step, optimizer)
        optimizer.zero_grad()
        sparsity.append(mst.sparsity())
        if step:
            assert sum(mst.nnz.values()) == sum(int(mask.sum()) for mask in mst.masks.values())
    assert sparsity[12:27] == pytest.approx([0.9] * 15, abs=0.002) and sparsity[-1] == pytest.approx(0.6, abs=0.002)
    assert sparsity[:13] == sorted(sparsity[:13]) and loss.item() < first
    check_masked(mst, optimizer)


def test_an_update_takes_the_place_of_the_optimizers_step_or_joins_it():
    for replaces in (True, False):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        method = applied(SET(constant(STEPS, 0.5, update_freq=2), update_replaces_step=replaces), model)
        bias = model[0].bias
        before = []
        for step, batch in enumerate(batches(4)):
            before.append(bias.clone())
            loss_of(model, batch).backward()
            assert bool(method.step(step, optimizer)) == (step == 2)
            optimizer.zero_grad()
        moved = [not torch.equal(one, other) for one, other in zip(before, [*before[1:], bias])]
        assert moved == [True, True, not replaces, True]


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1),
    "AMSGrad": lambda parameters: torch.optim.Adam(parameters, 1e-2, amsgrad=True),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 1e-2, momentum=0.5),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, 1e-2),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, 1e-2),  # whose state has other shapes
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_and_their_moments_are_zero_by_any_optimizer(name):
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    method = applied(RigL(constant(STEPS, 0.7, update_freq=3), uniform), model)
    for step, batch in enumerate(batches()):
        loss_of(model, batch).backward()
        method.step(step, optimizer)
        optimizer.zero_grad()
        check_masked(method, optimizer)
        assert {name: int(mask.sum()) for name, mask in method.masks.items()} == method.nnz


@pytest.mark.parametrize("kind", [Static, SET, RigL, MST])
def test_it_goes_on_from_its_saved_state_to_the_bit(kind, tmp_path):
    schedules = IN_PHASES if kind is MST else constant(STEPS, 0.8, update_freq=3)

    def made():
        model = mlp()
        return model, torch.optim.AdamW(model.parameters(), 1e-2), applied(kind(schedules, seed=3), model)

    model, optimizer, method = made()
    whole = train(method, model, optimizer)
    begun = made()
    train(begun[2], *begun[:2], range(17))
    torch.save([part.state_dict() for part in begun], tmp_path / "state.pt")
    again = made()
    for part, state in zip(again, torch.load(tmp_path / "state.pt")):
        part.load_state_dict(state)
    rows = train(again[2], *again[:2], range(17, STEPS))
    assert rows == whole[17:]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again[0].parameters()))


def test_gradients_that_are_accumulated_give_the_masks_of_the_whole_batch():
    whole, parts = mlp(), mlp()
    methods = [applied(RigL(constant(STEPS, 0.7, update_freq=3)), model) for model in (whole, parts)]
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (whole, parts)]
    for step, (inputs, targets) in enumerate(batches(10)):
        loss_of(whole, (inputs, targets)).backward()
        for part in zip(inputs.split(8), targets.split(8)):
            (loss_of(parts, part) / 2).backward()
        for method, optimizer in zip(methods, optimizers):
            method.step(step, optimizer, max_norm=0.5)
            optimizer.zero_grad()
    assert all(torch.equal(mask, methods[1].masks[name]) for name, mask in methods[0].masks.items())
    assert torch.allclose(whole[0].weight, parts[0].weight, atol=1e-6)


def test_gradients_are_clipped_as_they_are_masked():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    method = applied(Static(constant(STEPS, 0.5)), model)
    before = [parameter.clone() for parameter in model.parameters()]
    (1000 * loss_of(model, next(iter(batches(1))))).backward()
    method.step(0, optimizer, max_norm=0.25)
    moved = torch.cat([(new - old).flatten() for new, old in zip(model.parameters(), before)])
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-5)


def test_a_scale_that_was_too_large_leaves_out_step_and_update():
    model = mlp()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    method = applied(RigL(constant(STEPS, 0.7, update_freq=2)), model)
    for step, batch in enumerate(batches(6)):
        before = model[0].weight.clone()
        scaler.scale(loss_of(model, batch)).backward()
        if step == 2:
            model[0].weight.grad[0, 0] = torch.inf
        rows, scale = method.step(step, optimizer, scaler=scaler), scaler.get_scale()
        optimizer.zero_grad()
        assert bool(rows) == (step == 4) and scale == (2.0 if step >= 2 else 4.0)
        assert torch.equal(before, model[0].weight) == (step == 2) or step == 4
    check_masked(method, optimizer)


def test_a_compiled_model_is_trained_under_its_masks():
    plain, model = mlp(), mlp()
    compiled = torch.compile(model, backend="aot_eager")
    found = []
    for forward, own in ((plain, plain), (compiled, model)):
        optimizer = torch.optim.AdamW(own.parameters(), 1e-2)
        method = applied(MST(IN_PHASES), forward)
        train(method, forward, optimizer)
        check_masked(method, optimizer)
        found.append([*method.masks.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def _train_one_of_two(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(mlp(seed=rank))  # which gives all the first one's weights
    optimizer, method = torch.optim.AdamW(model.parameters(), 1e-2), applied(MST(IN_PHASES), model)
    for step, (inputs, targets) in enumerate(batches()):
        loss_of(model, (inputs[rank::2], targets[rank::2])).backward()
        method.step(step, optimizer)
        optimizer.zero_grad()
    torch.save({name.removeprefix("module."): mask for name, mask in method.masks.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_process_of_ddp_makes_the_same_masks(tmp_path):
    torch.multiprocessing.spawn(_train_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys() == {"0.weight", "2.weight"}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_schedules_for_ones_own_loop():
    schedules = phases(1000, ultra=0.8, final=0.5)
    assert [schedules.sparsity_at(step) for step in (0, 100, 699, 999)] == [0, 0.8, 0.8, 0.5]
    assert [step for step in range(1000) if schedules.updates.is_update(step)] == [*range(100, 1000, 100)]
    assert [schedules.phases.phase(step) for step in (0, 100, 700)] == [
        "warm-up",
        "ultra-sparsification",
        "restoration",
    ]
    assert constant(100, 0.8).drop_fraction_at(0) == pytest.approx(0.3) and constant(100, 0.8).sparsity_at(9) == 0.8


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: phases(1000, ultra=0.5, final=0.9), "ultra 0.5 and final 0.9; allowed: 0 or more, below 1"),
        (lambda: phases(1000, ultra=1.0), "ultra 1.0"),
        (lambda: phases(1000, warmup_end=0.9), "bounds"),
        (lambda: phases(1000, drop_fraction=2), "drop fractions of 2"),
        (lambda: phases(50), "no topology update between the steps 0 and 35"),
        (
            lambda: MST(IN_PHASES).apply(nn.Conv2d(2, 3, 3), lambda name, _: name == "weight"),
            "weight is 3×2×3×3; allowed: matrices",
        ),
        (lambda: count("small", "mts"), "the nearest valid one is 'mst'"),
        (lambda: count("small", "mst", sparsity__sparsity=2), "sparsity.sparsity is 2"),
        (lambda: count("small", "mst", mst__growth=print), "a setting is <built-in function print>"),
    ],
)
def test_bad_input_is_one_line(make, says):
    with pytest.raises(UserError) as error:
        if not isinstance(make(), dict):
            raise AssertionError
    assert says in str(error.value) and "\n" not in str(error.value)


def test_conv_weights_are_left_out_by_the_filter():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    assert applied(Static(constant(10, 0.5)), model).masks.keys() == {"2.weight"}


def test_a_weight_that_the_loss_does_not_reach_and_a_gradient_that_is_none_are_said():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    method = applied(RigL(constant(10, 0.5, update_freq=1)), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[0](torch.ones(1, 3)).sum().backward()
    with pytest.raises(MethodError, match=r"1\.weight has no gradient at step 1"):
        method.step(1, optimizer)
    model[1](torch.full((1, 3), torch.nan)).sum().backward()
    with pytest.raises(MethodError, match="a gradient is not finite at step 1"):
        method.step(1, optimizer)


def test_count_is_the_plan():
    found = count("smoke", "static", sparsity__sparsity=0.5)
    assert 1 < found["head_counted_full"]["reduction"] < 2
    assert count("smoke", "dense")["blocks_only"]["reduction"] == 1


def test_a_run_is_trained_loaded_and_scored(overrides, data_dir, tmp_path):
    settings = {key.replace(".", "__"): value for key, _, value in (pair.partition("=") for pair in overrides)}
    settings["data__files"] = [settings["data__files"].strip("[]")]
    run = replication.train(
        "smoke",
        "mst",
        tmp_path / "run",
        data_dir=data_dir,
        train__learning_rate=1e-5,
        **{
            key: value if isinstance(value, list) or not value.replace(".", "").isdigit() else float(value)
            for key, value in settings.items()
        }
        | {"eval__tasks": [], "sparsity__update_replaces_step": True},
    )
    assert run.is_finished() and run.config()["train"]["learning_rate"] == 1e-5
    model, tokenizer = replication.load(run.path)
    assert not model.training and tokenizer("the mask grows")["input_ids"]
    masks = run.masks()
    assert all(not model.get_parameter(name)[~torch.from_numpy(mask)].any() for name, mask in masks.items())
    assert replication.load(run.checkpoint)[0].config == model.config
    with pytest.raises(UserError):
        replication.load(tmp_path)


def test_distributions_are_exact():
    shapes = {"a": (10, 10), "b": (10, 100)}
    assert sum(erdos_renyi(shapes, 0.9).values()) == sum(uniform(shapes, 0.9).values()) == 110


@pytest.mark.parametrize("page", ["docs/library.md", "README.md"])
def test_the_examples_run_as_they_stand(page, request, capsys):
    text = (request.config.rootpath / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out.startswith("60% of the weights are zero\n")
    code = [line for line in blocks[0].splitlines() if line and "import" not in line]
    assert len(code) <= 12
