"""The indirect-object circuit: planted heads are found in their roles, by exact shares; noise is no circuit."""

import json
from functools import cache

import numpy as np
import pytest
import torch

import covector
from covector.analyses.ioi import Circuit, circuit, flips, ioi
from covector.analyses.ioi_ablation import removed
from covector.analyses.ioi_edges import KINDS, composed, edge
from covector.analyses.ioi_prompts import Task, ioi_tasks, packaged
from covector.analyses.ioi_roles import EDGES, groups_of, typed_shares
from covector.analyses.ioi_tables import edges, ioi_shown
from covector.arch.toy_ioi import indirect_object
from covector.cli.main import run
from covector.errors import BadRequest
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.run.decoder import Decoder

PLANTED = {"name mover": "L3H0", "S-inhibition": "L2H0", "duplicate token": "L0H0", "induction": "L1H0",
           "previous token": "L0H1"}  # fmt: skip


@cache
def toy() -> Model:
    return covector.open("toy-ioi")


@cache
def tasks() -> tuple[Task, ...]:
    return tuple(ioi_tasks(toy(), pairs=8, orders=2))


@cache
def found() -> Circuit:
    return circuit(toy(), tasks())


def noise() -> Model:
    weights, labels = indirect_object(planted=False)
    return Model("noise", weights, weights, Frame(), {"token": labels})


# Prompts ------------------------------------------------------------------------------------------------------------


def test_a_pair_differs_in_the_second_naming_alone_and_both_orders_come() -> None:
    for task in tasks():
        clean, corrupt, slots = task.pair.clean, task.pair.corrupt, task.pair.slots
        assert [i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b] == [slots["S2"]]
        assert clean[slots["S2"]] == clean[slots["S1"]] == task.s
        assert corrupt[slots["S2"]] == clean[slots["IO"]] == task.io
    assert {t.pair.slots["IO"] < t.pair.slots["S1"] for t in tasks()} == {True, False}


def test_no_name_stands_in_two_pairs() -> None:
    couples = {t.names: frozenset((t.io, t.s)) for t in tasks()}
    assert len(frozenset().union(*couples.values())) == 2 * len(couples)


def test_the_text_ends_before_the_answer() -> None:
    assert all(t.pair.texts[0].endswith(" to") for t in tasks())


def test_the_packaged_lists_stand_beside_their_licence(shared) -> None:
    theirs = json.loads((shared / "data" / "ioi" / "ioi.json").read_text())
    assert packaged() == theirs
    from covector.analyses.ioi_prompts import DATA

    assert "MIT License" in (DATA.parent / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("template", "told"), [("Then [A] went to", r"expected \[A\]"), ("Unknown [B] and [A] . [B] to [A]", "cannot read")]
)
def test_a_template_that_does_not_fit_is_refused(template: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        ioi_tasks(toy(), templates=[template])


def test_too_few_names_are_refused() -> None:
    with pytest.raises(BadRequest, match="at least four names"):
        ioi_tasks(toy(), names=["John", "Ryan", "Nobody"])


# Roles --------------------------------------------------------------------------------------------------------------


def test_the_planted_toy_says_the_indirect_object() -> None:
    assert found().accuracy == 1.0
    # 1 for the name that came once, 0 for the other; the noise heads write a few per cent.
    np.testing.assert_allclose(found().clean, 1.0, atol=0.05)


@pytest.mark.parametrize("role", PLANTED)
def test_each_planted_head_is_found_in_its_role_and_no_other_is(role: str) -> None:
    assert found().found(role) == [PLANTED[role]]


def test_no_negative_name_mover_is_found_where_none_is_planted() -> None:
    assert found().found("negative name mover") == []


def test_typed_paths_carry_the_whole_planted_difference() -> None:
    """By construction every path runs S2 reader > S-inhibition > name mover; the noise adds what it adds directly."""
    total = found().total.mean()
    for role in EDGES:
        assert abs(found().shares.by_role[role].sum(axis=1).mean() / total - 1) < 1e-3
    reader = found().shares.by_role["S2 reader"].mean(axis=0)
    halves = [reader[found().shares.heads.index(h)] for h in ("L0H0", "L1H0")]
    np.testing.assert_allclose(halves, total / 2, rtol=1e-3)  # each writes half of what is inhibited


def test_direct_shares_and_the_embeddings_sum_to_the_difference() -> None:
    """The toy has no MLP, so heads and embeddings are all that writes."""
    groups = groups_of(toy(), tasks())
    direct = typed_shares(groups).by_role["direct"].sum(axis=1)
    measured = np.concatenate([g.measured[:, 0] - g.measured[:, 1] for g in groups])
    embed = np.concatenate([np.sum(g.world.start * g.world.model.change("resid_in"), axis=(1, 2)) for g in groups])
    np.testing.assert_allclose(direct + embed, measured, atol=1e-10)


def test_shares_agree_with_the_search_over_single_paths() -> None:
    table = ioi_shown(toy(), tasks(), "paths", expansions=30)
    by_path = dict(zip(table["path"], table["share"], strict=True))
    mine = found().shares
    for role, path in (
        ("name mover", "L3H0.q@end>out"),
        ("S-inhibition", "L2H0@S2>L3H0.q@end>out"),
        ("S2 reader", "L0H0.q@S2>L2H0@S2>L3H0.q@end>out"),
    ):
        share = mine.by_role[role].mean(axis=0)[mine.heads.index(path.split("@")[0].removesuffix(".q"))]
        # The class takes all heads behind it together; the noise heads carry less than a thousandth.
        np.testing.assert_allclose(by_path[path], share, rtol=1e-3)


def test_noise_of_the_same_anatomy_is_no_circuit() -> None:
    table = ioi(noise(), ioi_tasks(noise(), pairs=8))
    assert "Does not hold here" in table.says
    assert set(table["found"]) == {""}


def test_a_random_model_that_cannot_do_the_task_has_no_found_head() -> None:
    """Sign flips at 5 %: of ten seeds of noise at most three pass (binomial tail 1e-3)."""
    passed = 0
    for seed in range(10):
        weights, labels = indirect_object(seed=seed, planted=False)
        model = Model("noise", weights, weights, Frame(), {"token": labels})
        passed += circuit(model, ioi_tasks(model, pairs=8, orders=1, seed=seed), seed=seed).done
    assert passed <= 3


def test_without_the_inhibited_name_the_mover_is_not_found() -> None:
    """Planted defect: the S-inhibition head writes nothing, so the task is not done and no head is claimed."""
    weights, labels = indirect_object()
    arrays = dict(weights.arrays)
    W_O = arrays["L2.W_O"].copy()
    W_O[0] = 0
    broken = type(weights)(weights.spec, arrays | {"L2.W_O": W_O})
    table = ioi(Model("broken", broken, broken, Frame(), {"token": labels}), tasks())
    assert set(table["found"]) == {""}


def test_flips_are_the_exact_one_sided_test_with_the_best_head() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 3)) + 0.5
    signs = np.array([[1 - 2 * ((i >> j) & 1) for j in range(6)] for i in range(64)])
    t = np.stack([(signs * values[:, h]).sum(axis=1) / np.linalg.norm(values[:, h]) for h in range(3)], axis=1)
    expected = [(t.max(axis=1) >= t[0, h] - 1e-12).mean() for h in range(3)]
    np.testing.assert_allclose(flips(values, 0), expected)
    assert flips(np.ones((5, 1)), 0)[0] == 2.0**-5


# Edges and ablation -------------------------------------------------------------------------------------------------


def test_planted_edges_compose_beyond_chance_and_rank_first() -> None:
    table = edges(toy(), found())
    assert list(table["edge"]) == ["L2H0 > L3H0.q", "L0H0 > L2H0.v", "L1H0 > L2H0.v", "L0H1 > L1H0.k"]
    assert (np.asarray(table["p"]) < 1e-4).all()
    assert (np.asarray(table["rank"]) == 1).all()


def test_the_way_in_matters() -> None:
    """L0H1 feeds the keys of L1H0, not its queries: a swapped side would show here."""
    by_key, by_query = (composed(toy(), ["L0H1"], "L1H0", way).p[0, 0] for way in "kq")
    assert by_key < 1e-4 < 0.5 < by_query


def test_shares_of_dyads_sum_to_the_share_of_the_edge() -> None:
    one = edge(toy(), found().groups, KINDS[0], "L2H0", "L3H0")
    mine = found().shares
    share = mine.by_role["S-inhibition"].mean(axis=0)[mine.heads.index("L2H0")]
    # The other heads of layer 3 read next to nothing from it.
    np.testing.assert_allclose(one.share, share, rtol=1e-3)


def test_equal_gains_leave_no_dyad_that_carries_the_edge_alone() -> None:
    one = edge(toy(), found().groups, KINDS[0], "L2H0", "L3H0")
    assert one.p_top > 0.5


def test_removing_a_head_is_the_run_with_its_z_zero() -> None:
    done = removed(toy(), found().groups, "L3H0", "ov", draws=2)
    group, decoder = found().groups[0], Decoder(toy().weights)

    def off(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, :, 0] = 0
        return z

    tokens = torch.tensor([t.pair.clean for t in group.tasks])
    y = decoder.run(tokens, intervene={"L3.z": off}).logits[:, -1].detach().numpy()
    rows = np.arange(len(tokens))
    left = y[rows, [t.io for t in group.tasks]] - y[rows, [t.s for t in group.tasks]]
    np.testing.assert_allclose(done.of_head[: len(tokens)], group.measured[:, 0] - left, atol=1e-10)


def test_a_dyad_removed_is_its_term_removed() -> None:
    """W_O(I − vvᵀ) takes σ u vᵀ out of W_V W_O, and nothing else."""
    from covector.analyses.ioi_ablation import _without
    from covector.linalg.svd import svd

    dyads = svd(toy().map("L3H0.ov"))
    changed = _without(toy(), "L3H0", "ov", dyads.Vh[3])["L3.W_O"][0]
    W_V, W_O = toy().weights["L3.W_V"][0], toy().weights["L3.W_O"][0]
    term = dyads.S[3] * np.outer(dyads.U[:, 3], dyads.Vh[3])
    np.testing.assert_allclose(W_V @ changed, W_V @ W_O - term, atol=1e-12)
    qk = svd(toy().map("L3H0.qk"))
    W_Q = _without(toy(), "L3H0", "qk", qk.U[:, 2])["L3.W_Q"][0]
    term = qk.S[2] * np.outer(qk.U[:, 2], qk.Vh[2])
    W_K = toy().weights["L3.W_K"][0]
    # The gain is 80: rounding of its square root either side.
    np.testing.assert_allclose(W_Q @ W_K.T, toy().weights["L3.W_Q"][0] @ W_K.T - term, atol=1e-10)


def test_without_s_inhibition_both_names_are_alike() -> None:
    """The mover then looks at all three names alike, S twice: IO − S falls from 1 to −1/3 (no IO head left out)."""
    done = removed(toy(), found().groups, "L2H0", "ov", draws=2)
    np.testing.assert_allclose(done.of_head.mean(), 4 / 3, atol=0.05)


# Command ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", ["roles", "edges", "paths", "ablation"])
def test_the_command_shows(show: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["observe", "ioi", "toy-ioi", "--show", show, "--pairs", "4", "--draws", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"]


def test_another_show_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["observe", "ioi", "toy-ioi", "--show", "nothing"]) == 2
    assert "expected roles, edges, paths, ablation" in capsys.readouterr().err


def test_the_letters_model_does_induction_not_this_task(shared, tmp_path) -> None:
    letters = list("abcdefghijklmnop")
    model = covector.open(str(shared / "models" / "induction-gpt2"))
    table = ioi(model, ioi_tasks(model, names=letters, templates=["q[B]r[A]s[B]t[A]"], pairs=6, bos="no"))
    assert set(table["found"]) == {""}
