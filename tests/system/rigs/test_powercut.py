"""Promise A: nothing that was acknowledged is missing after a power cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.rigs.powercut import DefaultFlushing, cut


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_acknowledged_is_missing_after_a_power_cut(seed: int, tmp_path: Path) -> None:
    result = await cut(tmp_path / "rig", seed)
    print(result)
    assert result.acknowledged >= 20
    assert result.missing == []


async def test_negative_control_the_default_flushing_loses_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    result = await cut(tmp_path / "rig", 3, DefaultFlushing)
    print(result)
    assert len(result.missing) > result.acknowledged // 2
