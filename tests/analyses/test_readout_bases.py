"""Several bases at once: every basis has its line, with the numbers that it has alone."""

import json

import numpy as np
import pytest

from agent_toys import little_agent
from covector.analyses.readout import readout
from covector.analyses.readout_bases import readout_bases
from covector.cli.main import run
from covector.errors import BadRequest, UnknownBasis
from covector.linalg import chance


@pytest.mark.parametrize(("site", "sides"), [("L1.mlp.in", ["read"]), ("L1H0.ov", ["read", "write"]),
                                             ("L1H0.qk", ["query", "key"])])  # fmt: skip
def test_every_basis_has_the_numbers_that_it_has_alone(site: str, sides: list[str]) -> None:
    model, names = little_agent(), ["action_out", "state_in", "return_in"]
    table = readout_bases(model, site, names, rank=3)
    assert [(r["dyad"], r["side"], r["basis"]) for r in table.rows] == [
        (i, s, b) for i in range(3) for s in sides for b in names
    ]
    for r in table.rows:
        alone, column = readout(model, site, rank=3, basis=r["basis"]).rows[r["dyad"]], (
            "write" if r["side"] in ("write", "key") else "read"
        )  # fmt: skip
        assert (r["label"], r["cos"], r["p"]) == tuple(alone[f"{column}_{n}"] for n in ("label", "cos", "p_dir"))
    np.testing.assert_array_equal(table["q"], chance.bh(np.asarray(table["p"])))


def test_the_command_of_the_issue_reads_four_bases(capsys, tmp_path) -> None:
    words = ["svd", "demo-dt", "L2.mlp.in", "--basis", "action_out,state_in,return_in,timestep_in", "--rank", "2"]
    assert run([*words, "--plot", str(tmp_path / "p.png")]) == 0
    shown = capsys.readouterr().out
    assert "2 dyads against 4 bases" in shown
    assert run([*words, "--json"]) == 0
    assert {r["basis"] for r in json.loads(capsys.readouterr().out)["rows"]} == set(words[4].split(","))
    assert run([*words, "--token", "left"]) == 2
    assert "--token goes with one basis" in capsys.readouterr().err


def test_bases_that_are_none_and_sides_outside_the_stream_are_refused() -> None:
    model = little_agent()
    with pytest.raises(UnknownBasis, match="token_out"):
        readout_bases(model, "L0.mlp.in", ["action_out", "token_out"])
    with pytest.raises(BadRequest, match="names of bases"):
        readout_bases(model, "L0.mlp.in", " , ")
