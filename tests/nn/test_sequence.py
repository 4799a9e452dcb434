from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from embedprior.nn.config import SequenceConfig
from embedprior.nn.sequence import centre_crop, embed, new_sequence, pad
from embedprior.nn.transformer import POSITIONS, SliceTransformer

POOLS = ("attention and max", "attention", "max", "mean")
WIDTH = 5


def exams(seed: int, count: int = 12, longest: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(2.0, 3.0, (int(rng.integers(1, longest + 1)), WIDTH)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("cell", ["gru", "lstm", "transformer"])
def test_appended_padding_changes_nothing(pool: str, cell: str, last_digits: float) -> None:
    config = SequenceConfig(cell=cell, pool=pool, hidden=8, dim=6, layers=2)  # type: ignore[arg-type]
    model = new_sequence(exams(0), config, 0).eval()
    tokens, lengths = pad(exams(1), 250)
    # Huge values: anything that reads past the end shows.
    longer = torch.cat([tokens, torch.full((len(tokens), 7, WIDTH), 1e4)], dim=1)
    for row, length in enumerate(lengths.tolist()):
        longer[row, length:] = 1e4
    with torch.no_grad():
        torch.testing.assert_close(model(longer, lengths), model(tokens, lengths), rtol=0, atol=1e-6 * last_digits)


@pytest.mark.parametrize("pool", POOLS)
def test_an_exam_embeds_alike_alone_and_among_longer_ones(pool: str) -> None:
    model = new_sequence(exams(0), SequenceConfig(pool=pool, hidden=8, dim=6), 0)  # type: ignore[arg-type]
    batch = exams(2)
    alone = np.concatenate([embed(model, [exam]) for exam in batch])
    np.testing.assert_allclose(embed(model, batch), alone, rtol=0, atol=1e-6)


def test_the_max_pool_is_the_maximum_over_real_tokens_only() -> None:
    """All recurrent outputs made negative: a pool that saw zero padding would return 0."""
    config = SequenceConfig(pool="max", hidden=1, dim=2, dropout=0.0)
    model = new_sequence(exams(0), config, 0)
    with torch.no_grad():
        for parameter in model.recurrent.parameters():
            parameter.zero_()
        # Both gates closed towards 0, candidate towards -1: every output is negative.
        for name, parameter in model.recurrent.named_parameters():
            if name.startswith("bias_ih"):
                parameter.copy_(torch.tensor([0.0, -5.0, -5.0]))
        model.out.weight.copy_(torch.eye(2))
        model.out.bias.zero_()
    short, long = exams(3)[0][:1], np.repeat(exams(3)[0][:1], 6, axis=0)
    assert embed(model, [short, long])[0].max() < -0.9


def test_the_order_of_tokens_matters_and_every_real_token_is_read() -> None:
    model = new_sequence(exams(0), SequenceConfig(hidden=8, dim=6), 0)
    exam = np.random.default_rng(4).normal(2.0, 3.0, (6, WIDTH)).astype(np.float32)
    base = embed(model, [exam])
    assert np.abs(embed(model, [exam[::-1]]) - base).max() > 1e-4
    for position in range(len(exam)):
        changed = exam.copy()
        changed[position] += 5.0
        assert np.abs(embed(model, [changed]) - base).max() > 1e-5


def test_long_exams_are_cropped_around_their_middle() -> None:
    exam = np.arange(10, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(centre_crop(exam, 4)[:, 0], [3, 4, 5, 6])
    np.testing.assert_array_equal(centre_crop(exam, 20), exam)
    tokens, lengths = pad([exam, exam[:2]], 4)
    assert tokens.shape == (2, 4, 1)
    assert lengths.tolist() == [4, 2]


def test_the_scale_is_that_of_all_training_tokens() -> None:
    batch = exams(5)
    model = new_sequence(batch, SequenceConfig(hidden=4, dim=4), 0)
    rows = np.concatenate(batch)
    np.testing.assert_allclose(model.mean.numpy(), rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.scale.numpy(), rows.std(0), rtol=1e-5)


@pytest.mark.parametrize("longest", [1, 4, 200])
def test_the_transformer_s_class_token_reads_scans_of_any_length(longest: int, last_digits: float) -> None:
    config = SequenceConfig(cell="transformer", pool="class token", hidden=16, dim=6, layers=2)
    model = new_sequence(exams(0), config, 0)
    batch = exams(5, longest=longest)
    found = embed(model, batch)
    assert np.isfinite(found).all()
    alone = np.concatenate([embed(model, [exam]) for exam in batch])
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-6 * last_digits)
    tokens, lengths = pad(batch, 250)
    longer = torch.cat([tokens, torch.full((len(tokens), 9, WIDTH), torch.inf)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(longer, lengths), model(tokens, lengths), rtol=0, atol=1e-6 * last_digits
        )


def test_the_transformer_s_positions_span_every_scan_from_end_to_end() -> None:
    transformer = SliceTransformer(3, 8, 1)
    with torch.no_grad():
        transformer.positions.copy_(torch.linspace(0, 1, POSITIONS)[:, None].expand(-1, 8))
        found = transformer._positions(torch.tensor([5, 3, 1]), 5)[..., 0]
    np.testing.assert_allclose(found[0], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(found[1, :3], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(found[2, 0], 0.5, atol=1e-6)


def test_the_transformer_s_positions_start_from_sines_and_cosines() -> None:
    """By the formula of the paper: sines, then cosines, of the place over powers of 10,000."""
    table = SliceTransformer(3, 8, 1).positions.detach().numpy()
    for place in (0, 1, 40, POSITIONS - 1):
        angles = [place / 10_000 ** (i / 4) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(table[place], expected, atol=1e-5)


def test_a_class_token_is_refused_of_recurrent_layers() -> None:
    with pytest.raises(ValueError, match="pool 'class token' is a transformer's; cell is 'gru'"):
        SequenceConfig(pool="class token")
