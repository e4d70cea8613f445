"""Operators of inverse problems against their matrices: adjoints, pseudo-inverses, regularised solutions."""

import math

import pytest
import torch

from diffusers_sde.sde.linear_inverse import check_adjoint, conjugate_gradient, pseudo_inverse, solve_regularized
from diffusers_sde.sde.operators import BlockAverage, Blur, Cropped, GreyAxis, Mask, RandomProjection, hartley
from exact_posteriors import matrix_of
from tests.oracles import seeded

SHAPE = (3, 4, 6)
BINOMIAL = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
LOPSIDED = torch.tensor([[0.5, 0.2, 0.0, 0.1], [0.0, 0.1, 0.7, 0.0], [0.3, -0.4, 0.0, 0.2]])
OPERATORS = {
    "mask": Mask(torch.rand(1, 4, 6, generator=seeded()) > 0.5),
    "mask per channel": Mask((torch.rand(SHAPE, generator=seeded()) > 0.5).float()),
    "grey axis": GreyAxis(),
    "block average": BlockAverage(2),
    "blur": Blur(BINOMIAL),
    "lopsided blur": Blur(LOPSIDED),
    "random projection": RandomProjection(SHAPE, 20, seeded()),
    "cropped mask": Cropped(Mask(torch.rand(1, 3, 4, generator=seeded()) > 0.5), (1, 1, 0, 1)),
    "cropped blur": Cropped(Blur(BINOMIAL), (2, 0, 1, 0)),
    "cropped projection": Cropped(RandomProjection((3, 2, 5), 9, seeded()), (0, 1, 1, 1)),
}


class Plain:
    """An operator with the two necessary methods only, given by its matrix; measurements of shape (B, m)."""

    def __init__(self, matrix, shape=SHAPE):
        self.matrix, self.shape = matrix, shape

    def A(self, x):
        return x.flatten(1) @ self.matrix.to(x).T

    def A_adjoint(self, y):
        return (y @ self.matrix.to(y)).reshape(-1, *self.shape)


def adjoint_matrix(function, y_shape):
    count = torch.Size(y_shape).numel()
    return function(torch.eye(count, dtype=torch.float64).reshape(count, *y_shape)).flatten(1).T


def random(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_and_pseudo_inverse_are_those_of_the_matrix(name):
    operator = OPERATORS[name]
    matrix = matrix_of(operator, SHAPE)
    y_shape = operator.A(torch.zeros(1, *SHAPE)).shape[1:]
    torch.testing.assert_close(adjoint_matrix(operator.A_adjoint, y_shape), matrix.T, rtol=0, atol=1e-12)
    expected = torch.linalg.pinv(matrix, rtol=1e-3)
    torch.testing.assert_close(adjoint_matrix(operator.A_dagger, y_shape), expected, rtol=0, atol=1e-10)
    check_adjoint(operator, (2, *SHAPE))
    check_adjoint(operator, (2, *SHAPE), dtype=torch.float64, rtol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_conjugate_gradients_find_the_same(name):
    """A^+ y and (a A* A + b)^-1 A* y, also for measurements that no image has."""
    operator = OPERATORS[name]
    plain = Plain(matrix_of(operator, SHAPE))
    y = random(4, len(plain.matrix))
    inverse = torch.linalg.pinv(plain.matrix, rtol=1e-3)
    torch.testing.assert_close(pseudo_inverse(plain)(y).flatten(1), y @ inverse.T, rtol=0, atol=1e-4)
    inner = 0.7 * plain.matrix @ plain.matrix.T + 0.02 * torch.eye(len(plain.matrix), dtype=torch.float64)
    expected = torch.linalg.solve(inner, y.T).T @ plain.matrix
    solution = solve_regularized(plain, y, 0.7, 0.02).flatten(1)
    torch.testing.assert_close(solution, expected, rtol=0, atol=1e-4)


def test_conjugate_gradients_keep_rows_apart():
    """Rows of other sizes, and of zeros, that stop at other times: each is what it is alone."""
    matrix = random(10, 10)
    matrix = matrix @ matrix.T + 0.1 * torch.eye(10, dtype=torch.float64)
    b = random(4, 10, seed=1) * torch.tensor([[1e3], [0.0], [1e-3], [1.0]], dtype=torch.float64)
    b[3] = torch.linalg.eigh(matrix).eigenvectors[:, 0]  # done after one iteration
    together = conjugate_gradient(lambda x: x @ matrix, b)
    alone = torch.cat([conjugate_gradient(lambda x: x @ matrix, row[None]) for row in b])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(together @ matrix, b, rtol=1e-5, atol=1e-8)
    assert torch.equal(together[1], torch.zeros(10, dtype=torch.float64))


def test_conjugate_gradients_stop_when_all_rows_are_done():
    calls = []
    conjugate_gradient(lambda x: calls.append(1) or 2 * x, random(3, 10))
    assert len(calls) == 1
    calls.clear()
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    conjugate_gradient(lambda x: calls.append(1) or scales * x, random(3, 5))
    assert len(calls) == 8  # done after 5, seen at 8
    calls.clear()
    conjugate_gradient(lambda x: calls.append(1) or scales * x, random(3, 5), max_iterations=3)
    assert len(calls) == 3


def test_measurements_are_what_they_are_called():
    x = random(2, *SHAPE)
    assert torch.equal(OPERATORS["mask"].A(x) != 0, OPERATORS["mask"].mask.expand(2, 3, 4, 6))
    torch.testing.assert_close(GreyAxis().A(x), 3**0.5 * x.mean(dim=1, keepdim=True))
    torch.testing.assert_close(GreyAxis().A(GreyAxis().A_adjoint(x[:, :1])), x[:, :1])
    torch.testing.assert_close(BlockAverage(2).A(x)[:, :, 1, 2], x[:, :, 2:4, 4:6].mean(dim=(2, 3)))
    blurred = torch.zeros_like(x)
    for i in range(3):
        for j in range(4):
            blurred += LOPSIDED[i, j] * x.roll((i - 1, j - 2), dims=(2, 3))
    torch.testing.assert_close(Blur(LOPSIDED).A(x), blurred, rtol=0, atol=1e-7)
    inside = Cropped(GreyAxis(), (2, 1, 1, 0))
    assert torch.equal(inside.A(x), GreyAxis().A(x[:, :, 1:, 2:-1]))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (2, 1, 6), (1, 1, 1)])
def test_hartley_transform(shape):
    """Real, orthonormal and its own inverse for any size."""
    count = math.prod(shape)
    matrix = hartley(torch.eye(count, dtype=torch.float64).reshape(count, *shape)).flatten(1)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)


def test_random_projection():
    before = torch.get_rng_state()
    first, again, other = (RandomProjection(SHAPE, 20, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    matrix = matrix_of(first, SHAPE)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(matrix, matrix_of(again, SHAPE))
    assert not torch.equal(matrix, matrix_of(other, SHAPE))
    assert matrix.abs().max() <= (2 / 72) ** 0.5 + 1e-12  # spread over all pixels
    large = RandomProjection((3, 512, 512), 1000, seeded())
    assert large.A(torch.ones(1, 3, 512, 512)).shape == (1, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_dtype_is_that_of_the_images(name, dtype):
    operator = OPERATORS[name]
    y = operator.A(torch.ones(1, *SHAPE, dtype=dtype))
    assert y.dtype == operator.A_adjoint(y).dtype == operator.A_dagger(y).dtype == dtype


class Wrong(Plain):
    """An operator whose parts can be replaced."""

    def __init__(self, A=None, A_adjoint=None):
        super().__init__(matrix_of(Blur(LOPSIDED), SHAPE))
        self.A = A or self.A
        self.A_adjoint = A_adjoint or self.A_adjoint


BLUR = Plain(matrix_of(Blur(LOPSIDED), SHAPE))


@pytest.mark.parametrize(
    "operator",
    [
        Wrong(A_adjoint=lambda y: BLUR.A(y.reshape(-1, *SHAPE)).reshape(-1, *SHAPE)),  # kernel not mirrored
        Wrong(A_adjoint=lambda y: 1.01 * BLUR.A_adjoint(y)),
        Wrong(A_adjoint=lambda y: -BLUR.A_adjoint(y)),
        Wrong(A_adjoint=lambda y: torch.nan * BLUR.A_adjoint(y)),
        Wrong(A=lambda x: BLUR.A(x) + 0.1),
        Wrong(A=lambda x: BLUR.A(x).square()),
    ],
)
def test_wrong_adjoints_are_refused_with_the_numbers(operator):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"<A u, v> = \S+ and <u, A\* v> = \S+ for"):
        check_adjoint(operator, (2, *SHAPE))
    assert torch.equal(torch.get_rng_state(), before)


def test_adjoint_of_another_shape_is_refused():
    operator = Wrong(A_adjoint=lambda y: BLUR.A_adjoint(y)[:, :1])
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 6\).*images \(2, 3, 4, 6\)"):
        check_adjoint(operator, (2, *SHAPE))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Mask(torch.tensor([0.0, 0.5])), r"values in \[0, 0.5\]; allowed are 1"),
        (lambda: Mask(torch.tensor([torch.nan])), "allowed are 1"),
        (lambda: BlockAverage(4).A(torch.ones(1, *SHAPE)), "4 x 6 have no whole blocks of 4 x 4"),
        (lambda: Blur(torch.ones(3)), r"`kernel` has shape \(3,\); give \(height, width\)"),
        (lambda: Blur(torch.ones(5, 5)).A(torch.ones(1, *SHAPE)), "kernel is 5 x 5 and the image 4 x 6"),
        (lambda: RandomProjection(SHAPE, 73), "`num_measurements` is 73; .* 1 to 72"),
        (lambda: RandomProjection(SHAPE, 0), "`num_measurements` is 0"),
        (lambda: RandomProjection(SHAPE, 5).A(torch.ones(1, 3, 6, 4)), r"shape \(3, 6, 4\); this projection"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
