"""Posteriors made after adaptation: each against a dense or simulated form, and what all of them must keep."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abmll.adapters.folder import MODEL_FILE, write_adapter
from abmll.config import PosteriorConfig, parse_overrides
from abmll.errors import AbmllError
from abmll.everyday.saved import read_posterior, save_posterior
from abmll.everyday.session import open_run
from abmll.everyday.shared_session import SharedSession
from abmll.exporting import export_mean
from abmll.kernels.noise import noise_key
from abmll.methods.noise import step_key
from abmll.question import Question
from abmll.systems.build import build_system, renew
from abmll.systems.plans import AdaptationPlan, PredictionPlan, resolve
from abmll.systems.posteriors.base import Adaptation
from abmll.systems.posteriors.blob import BLoB, kl_gradients
from abmll.systems.posteriors.build import POSTERIORS
from abmll.systems.posteriors.ensemble import Ensemble, reordered
from abmll.systems.posteriors.ivon import IVON, IVONState, ivon_step
from abmll.systems.posteriors.laplace import Laplace
from abmll.systems.posteriors.settings import SETTINGS, IVONSettings, KLSettings, TFBSettings, resolve_posterior
from abmll.systems.posteriors.stored import POSTERIOR_FILE, read_posterior_into, write_posterior
from abmll.systems.posteriors.swag import SWAG
from abmll.systems.posteriors.tfb import TFB
from abmll.systems.posteriors.variational import kl_weight
from abmll.systems.system import System
from tests.exact import exact_base, float64
from tests.runs import UNSEEN, config_in, place_tiny, train_run
from tests.systems import TASKS, key_of, questions, run_config, same, scramble, tiny_base, values

PLAN, MEAN = AdaptationPlan(6, 6), PredictionPlan("mean", 1)
every_posterior = pytest.mark.parametrize("name", POSTERIORS)


def method_for(name: str) -> str:
    """One whose phi the posterior can be made of."""
    return "core" if name == "core" else "fomaml"


def config_of(name: str, method: str | None = None, **posterior: Any) -> Any:
    method = method_for(name) if method is None else method
    given = {"inner_lr": 1e-2} if method != "abmll" else {}
    config = run_config(method, adaptation={"samples": 4}, **given)
    quick = {"tfb": {"bisections": 2, "samples": 2}}.get(name, {})
    return config.model_copy(update={"posterior": PosteriorConfig(name=name, **{**quick, **posterior})})


def system_with(name: str, base: Any = None, method: str | None = None, **posterior: Any) -> System:
    """A system with a posterior on a tiny model, theta far from its start."""
    system = build_system(config_of(name, method, **posterior), base or tiny_base())
    scramble(system)
    return system


def adapted(name: str, base: Any = None, method: str | None = None, **posterior: Any) -> System:
    system = system_with(name, base, method, **posterior)
    system.adapt(TASKS[0], PLAN)
    return system


# -------------------- what all of them keep


@every_posterior
def test_phi_theta_and_the_mean_weights_answers_are_those_of_the_plain_system(name: str) -> None:
    system, plain = adapted(name), adapted("none", method=method_for(name))
    asked = TASKS[0].test[:4]
    for each in (system, plain):
        each.predict(asked)
    assert same(values(system, "task"), values(plain, "task"))
    assert same(values(system, "shared"), values(plain, "shared"))
    assert system.predict(asked, MEAN) == plain.predict(asked, MEAN)


@every_posterior
def test_answers_draw_from_it_and_are_finite(name: str) -> None:
    system = adapted(name)
    asked = TASKS[0].test[:4]
    found, mean = system.answer(asked), system.answer(asked, MEAN)
    assert all(answer.spread is not None and answer.spread > 0 for answer in found)
    assert all(answer.information is not None and answer.information > 0 for answer in found)
    assert [answer.probabilities for answer in found] != [answer.probabilities for answer in mean]
    assert all(math.isclose(sum(answer.probabilities), 1, rel_tol=1e-6) for answer in found)
    assert all(answer.spread is None for answer in mean)


@every_posterior
def test_an_answer_depends_neither_on_the_others_nor_on_when_it_is_asked(name: str) -> None:
    system = adapted(name)
    asked = TASKS[0].test[:5]
    whole = system.predict(asked, coordinates=(1, "here"))
    assert system.predict(asked, coordinates=(1, "here")) == whole
    (alone,) = system.predict(asked[3:4], coordinates=(1, "here"))
    assert alone.probabilities == pytest.approx(whole[3].probabilities, abs=1e-5)
    if name != "ensemble":
        assert system.predict(asked, coordinates=(2, "here")) != whole


@every_posterior
def test_without_steps_there_is_no_posterior(name: str) -> None:
    system = adapted(name)
    system.adapt(TASKS[0], AdaptationPlan(6, 0))
    asked = TASKS[0].test[:2]
    assert system.predict(asked) == system.predict(asked, MEAN)


@every_posterior
def test_it_is_made_anew_for_each_adaptation(name: str) -> None:
    system, other = adapted(name), system_with(name)
    system.adapt(TASKS[1], PLAN)
    other.adapt(TASKS[1], PLAN)
    assert system.predict(TASKS[1].test[:2]) == other.predict(TASKS[1].test[:2])


@every_posterior
def test_a_saved_task_answers_as_before_and_exports_its_mean(name: str, tmp_path: Path) -> None:
    method = "core" if name == "core" else "reptile"
    config = config_in(place_tiny(tmp_path), method, posterior={"name": name})
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    system = train_run(config, folder)
    system.adapt(UNSEEN, AdaptationPlan(6, 5))
    before = system.answer(UNSEEN.test[:3])
    save_posterior(folder, "mine", config, system)
    saved = read_posterior(folder, "mine")
    again = open_run(folder, saved=saved).system
    assert again.answer(UNSEEN.test[:3]) == before
    export_mean(saved.adapter, tmp_path / "lora")
    assert (tmp_path / "lora" / MODEL_FILE).is_file()
    with pytest.raises(AbmllError, match=rf"System.save keeps .* posterior.name={name} .*save_posterior"):
        system.save(tmp_path / "alone")
    with pytest.raises(AbmllError, match="Classifier keeps the adapted weights alone"):
        SharedSession(open_run(folder)).fit("mine", UNSEEN.train[:6])


@pytest.mark.parametrize("what", ["missing", "damaged", "another adapter's", "other settings"])
def test_a_posterior_s_file_that_is_not_its_adapter_s_is_refused(what: str, tmp_path: Path) -> None:
    config = config_in(place_tiny(tmp_path), "reptile", posterior={"name": "tfb"})
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    system = train_run(config, folder)
    for name, task in (("one", UNSEEN), ("two", TASKS[0])):
        system.adapt(task, AdaptationPlan(6, 5))
        save_posterior(folder, name, config, system)
    file, overrides = folder / "tasks" / "one" / POSTERIOR_FILE, {}
    if what == "missing":
        file.unlink()
    elif what == "damaged":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif what == "another adapter's":
        file.write_bytes((folder / "tasks" / "two" / POSTERIOR_FILE).read_bytes())
    else:
        overrides = {"posterior": {"tolerance": 0.5}}
    words = {"missing": "missing, so there is no posterior.name=tfb", "damaged": "damaged"}
    with pytest.raises(AbmllError, match=words.get(what, "of another adapter, or made with other settings")):
        open_run(folder, overrides, read_posterior(folder, "one"))


def spoilt(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """States that somebody could have written and sealed: tensors left out, others added, cut, negative."""
    first = next(iter(state))
    cut = {name: tensor.flatten()[:-1] if tensor.numel() > 1 else tensor.repeat(2) for name, tensor in state.items()}
    negative = {name: -tensor.abs() - 1 for name, tensor in state.items()}
    return [{}, {name: tensor for name, tensor in state.items() if name != first}, cut, negative]


@every_posterior
def test_a_sealed_state_that_cannot_be_is_refused_or_answers(name: str, tmp_path: Path) -> None:
    system = adapted(name)
    posterior = system.posterior
    assert posterior is not None
    write_adapter(system.stored("task"), tmp_path / "task")
    good, refused = {key: tensor.clone() for key, tensor in posterior.state().items()}, 0
    for state in spoilt(good):
        posterior.state = lambda state=state: state  # type: ignore[method-assign]
        write_posterior(posterior, name, tmp_path / "task")
        try:
            read_posterior_into(posterior, name, tmp_path / "task")
            system.predict(TASKS[0].test[:1])
        except AbmllError:
            refused += 1
    assert refused >= (2 if name in ("tfb", "ensemble") else 3)


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(AbmllError, match="Did you mean 'laplace'"):
        resolve_posterior("laplas", {})
    with pytest.raises(AbmllError, match=r"setting of posterior swag 'column'.*columns"):
        resolve_posterior("swag", {"column": 3})
    with pytest.raises(AbmllError, match=r"setting of posterior none"):
        resolve_posterior("none", {"samples": 3})
    with pytest.raises(AbmllError, match=r"posterior.tolerance: .*found 0"):
        resolve_posterior("tfb", {"tolerance": 0})
    with pytest.raises(AbmllError, match=r"method.name=abmll holds stds"):
        resolve(config_of("laplace", method="abmll"))
    assert POSTERIORS.keys() == SETTINGS.keys()


def test_a_preset_lies_between_the_defaults_and_what_is_given() -> None:
    for name, kind in SETTINGS.items():
        assert "default" in kind.presets
        assert resolve_posterior(name, {}) == kind()
        for preset, settings in kind.presets.items():
            found = resolve_posterior(name, {}, preset)
            assert found == kind(**settings)
            assert settings.keys() <= kind.model_fields.keys()
            assert resolve(config_of(name, preset=preset)).rows == ("run", "run_mean")
    given = resolve_posterior("swag", {"scale": 0.5}, "as-published")
    assert given is not None
    assert given.model_dump()["scale"] == 0.5
    with pytest.raises(AbmllError, match=r"preset of posterior swag 'published'.*as-published"):
        resolve_posterior("swag", {}, "published")
    with pytest.raises(AbmllError, match=r"preset of posterior none 'as-published'"):
        resolve(run_config("reptile").model_copy(update={"posterior": PosteriorConfig(preset="as-published")}))


def test_as_published_laplace_ivon_and_blob_are_the_settings_of_their_traps() -> None:
    laplace = resolve_posterior("laplace", {}, "as-published")
    assert laplace == resolve_posterior(
        "laplace", {"centre": "zero", "form": "kfac", "inputs_mean": "examples", "samples": 100_000}
    )
    assert resolve_posterior("ivon", {}, "as-published") == resolve_posterior("ivon", {})
    for name in ("blob", "scalabl"):
        settings = resolve_posterior(name, {}, "as-published")
        assert isinstance(settings, KLSettings)
        weights = [kl_weight(settings, examples=20, steps=step, batch_size=2) for step in range(10)]
        assert 0 < sum(weights) < 1e-20, "nearly all of the KL comes after an adaptation has ended"


def test_a_posterior_of_another_name_drops_the_settings_of_the_base() -> None:
    found = parse_overrides(["posterior.columns=3", "posterior.name=swag"])
    assert found == {"posterior": {"name": "swag", "columns": 3}}
    assert resolve(config_of("swag")).rows == ("run", "run_mean")


def test_a_renewed_system_has_nothing_to_draw_from() -> None:
    system = adapted("tfb")
    assert renew(system, config_of("swag"))
    assert isinstance(system.posterior, SWAG)
    assert not system.posterior.fitted


def test_anil_s_posterior_is_of_the_layers_that_move() -> None:
    for name in POSTERIORS.keys() - {"core"}:
        system = system_with(name, method="anil", **({"tolerance": 1.0} if name == "tfb" else {}))
        system.adapt(TASKS[0], PLAN)
        assert system.posterior is not None
        assert len(system.posterior.parameters) == 4
        assert system.answer(TASKS[0].test[:2])[0].spread


# -------------------- Laplace


def laplace_of(system: System) -> Laplace:
    assert isinstance(system.posterior, Laplace)
    return system.posterior


def scores_of(system: System, question: Question) -> Tensor:
    with torch.no_grad():
        return system.likelihood.scores(system.batcher.batch([question])).log_probabilities[0, : len(question.choices)]


def flat(parameters: list[Any]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def dense_curvature(posterior: Laplace, rows: tuple[Question, ...]) -> np.ndarray:
    """Sum of J^T (diag p - p p^T) J, all its entries."""
    total: Any = 0.0
    for row in rows:
        f, jacobian, _ = posterior.jacobian(row)
        p, j = f.exp().numpy(), jacobian.numpy()
        total = total + j.T @ (np.diag(p) - np.outer(p, p)) @ j
    return np.asarray(total)


@pytest.mark.parametrize("kind", ["cloze", "letter"])
def test_jacobian_rows_are_finite_differences(kind: str) -> None:
    with float64():
        config = config_of("laplace")
        config = config.model_copy(update={"likelihood": config.likelihood.model_copy(update={"kind": kind})})
        system = build_system(config, exact_base())
        scramble(system)
        posterior, question, size = laplace_of(system), questions(1)[0], 1e-5
        f, rows, _ = posterior.jacobian(question)
        assert torch.allclose(f, scores_of(system, question))
        start = [p.detach().clone() for p in posterior.parameters]
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            way = [torch.randn(p.shape, generator=generator) for p in start]
            found = []
            for sign in (1, -1):
                for p, value, step in zip(posterior.parameters, start, way, strict=True):
                    p.data.copy_(value + sign * size * step)
                found.append(scores_of(system, question))
            assert torch.allclose(rows @ flat(way), (found[0] - found[1]) / (2 * size), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("centre", ["theta", "zero"])
def test_covariance_and_evidence_are_those_of_the_dense_gauss_newton_matrix(centre: str) -> None:
    with float64():
        system = adapted("laplace", exact_base(), centre=centre)
        posterior = laplace_of(system)
        examples = system.adapt(TASKS[0], PLAN)
        phi, theta = (flat(system.method.adapters.parameters(slot, "mean")) for slot in ("task", "shared"))
        distance = float((phi - (theta if centre == "theta" else 0)).square().sum())
        curvature = dense_curvature(posterior, examples)
        for precision in (0.3, 20.0):
            posterior.precision = precision
            inverse = np.linalg.inv(curvature + precision * np.eye(len(curvature)))
            _, rows, _ = posterior.jacobian(TASKS[0].test[0])
            np.testing.assert_allclose(posterior.covariance(rows), rows.numpy() @ inverse @ rows.numpy().T, rtol=1e-8)
            _, log_det = np.linalg.slogdet(np.eye(len(curvature)) + curvature / precision)
            expected = -precision / 2 * distance - log_det / 2
            assert posterior.evidence().log_at(precision) == pytest.approx(expected, rel=1e-9)


def test_the_precision_has_the_largest_evidence_and_is_mackay_s_fixed_point() -> None:
    posterior = laplace_of(adapted("laplace"))
    best = posterior.precision
    grid = best * np.exp(np.linspace(-3, 3, 61))
    assert posterior.evidence().log_at(best) >= max(map(posterior.evidence().log_at, grid)) - 1e-6
    rows = posterior.state()["rows"].double().numpy()
    spectrum = np.linalg.eigvalsh(rows @ rows.T).clip(min=0)
    effective = float((spectrum / (spectrum + best)).sum())
    phi, theta = (flat(posterior.parts.method.adapters.parameters(slot, "mean")) for slot in ("task", "shared"))
    assert best * float((phi - theta).double().square().sum()) == pytest.approx(effective, rel=1e-3)
    assert laplace_of(adapted("laplace", precision=7.0)).precision == 7.0


def test_a_precise_prior_gives_phi_s_own_answers() -> None:
    system = adapted("laplace", precision=1e12)
    asked = TASKS[0].test[:3]
    for one, other in zip(system.predict(asked), system.predict(asked, MEAN), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_linearised_answers_are_those_of_a_multivariate_normal() -> None:
    system = adapted("laplace", samples=20_000)
    posterior, question = laplace_of(system), TASKS[0].test[0]
    f, rows, _ = posterior.jacobian(question)
    torch.manual_seed(0)
    ridge = 1e-6 * torch.eye(len(f), dtype=torch.float64)  # of K log-probabilities at most K - 1 move freely
    around = torch.distributions.MultivariateNormal(f.double(), torch.tensor(posterior.covariance(rows)) + ridge)
    expected = around.sample((200_000,)).softmax(-1)
    (found,) = system.predict([question])
    assert found.probabilities == pytest.approx(expected.mean(0).tolist(), abs=0.01)
    assert found.spread == pytest.approx(expected.std(0).tolist(), abs=0.01)


def test_the_prior_s_centre_tells() -> None:
    found = {centre: laplace_of(adapted("laplace", centre=centre)).precision for centre in ("theta", "zero")}
    assert found["theta"] > found["zero"], "phi is nearer to theta than to zero"


# -------------------- TFB


def test_tfb_s_noise_on_the_product_is_alike_in_all_directions_of_b() -> None:
    system = adapted("tfb")
    posterior = system.posterior
    assert isinstance(posterior, TFB)
    posterior.sigma = 0.3
    layer = next(iter(system.method.adapters.layers.values())).task
    scale, b, a = layer.variance.scale, layer.mean_b.detach().double(), layer.mean_a.detach().double()
    columns = []
    for number in range(100):  # of 32 columns each
        values_of_draw = posterior.draw(number, number)
        assert torch.equal(values_of_draw[0], layer.mean_b)
        columns.append(scale * b @ (values_of_draw[1].double() - a))
    noise = torch.stack(columns).permute(0, 2, 1).reshape(-1, b.shape[0]).numpy()
    u, _, _ = np.linalg.svd(b.numpy(), full_matrices=False)
    expected = (scale * 0.3) ** 2 * u @ u.T
    np.testing.assert_allclose(np.cov(noise.T), expected, atol=0.1 * expected.max())
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.05)


def test_tfb_gives_directions_that_b_has_not_no_noise() -> None:
    system = system_with("tfb")
    layer = next(iter(system.method.adapters.layers.values())).task
    posterior = system.posterior
    assert isinstance(posterior, TFB)
    with torch.no_grad():
        layer.mean_b[:, 1:] = 0
    posterior.load({"sigma": torch.tensor([0.3])})
    drawn = posterior.draw(0, 7)[1] - layer.mean_a
    assert torch.linalg.matrix_rank(drawn) == 1
    assert bool(drawn.isfinite().all())
    with torch.no_grad():
        layer.mean_b.zero_()
    posterior.load({"sigma": torch.tensor([0.3])})
    assert torch.equal(posterior.draw(0, 7)[1], layer.mean_a)


class Parabola(TFB):
    """An NLL of 1 + sigma^2."""

    def _nll(self, sigma: float, examples: Any) -> float:
        return 1 + sigma**2


@pytest.mark.parametrize(("tolerance", "expected"), [(0.01, 0.1), (1.0, 0.2), (1e-8, 0.0)])
def test_tfb_s_std_is_the_largest_that_is_tolerated(tolerance: float, expected: float) -> None:
    system = adapted("tfb")
    assert system.posterior is not None
    posterior = Parabola(system.posterior.parts, TFBSettings(tolerance=tolerance, bisections=20))
    posterior.fit(Adaptation((), (), (0, 0, 0)))
    assert posterior.sigma == pytest.approx(expected, abs=1e-6)
    assert posterior.sigma**2 <= tolerance * (1 + 1e-6)


@pytest.mark.parametrize("tolerance", [0.01, 1.0, 1e-8])
def test_as_published_tfb_returns_the_smallest_std_that_exceeds_the_tolerance(tolerance: float) -> None:
    """Of the 32 parts that five bisections of .001 to .2 make, the upper end of that in which the limit lies."""
    system = adapted("tfb")
    assert system.posterior is not None
    settings = resolve_posterior("tfb", {"tolerance": tolerance}, "as-published")
    assert isinstance(settings, TFBSettings)
    posterior = Parabola(system.posterior.parts, settings)
    posterior.fit(Adaptation((), (), (0, 0, 0)))
    ends = 0.001 + (0.2 - 0.001) * np.arange(1, 33) / 32
    beyond = ends[np.square(ends) > tolerance]
    assert posterior.sigma == pytest.approx(beyond.min() if len(beyond) else 0.2, abs=1e-6)
    assert len(beyond) == 0 or posterior.sigma**2 > tolerance


# -------------------- SWAG


def test_swag_s_moments_are_those_of_the_weights_it_collected() -> None:
    system = system_with("swag", columns=3)
    posterior = system.posterior
    assert isinstance(posterior, SWAG)
    path: list[Tensor] = []
    collect = posterior.after_step

    def listen(step: int) -> None:
        collect(step)
        path.append(flat(posterior.parameters))

    posterior.after_step = listen  # type: ignore[method-assign]
    system.adapt(TASKS[0], PLAN)
    weights = torch.stack(path[2:]).double().numpy()  # the later of six steps
    state = posterior.state()
    count = len(posterior.parameters)
    mean, variance = (flat([state[f"{part}.{i}"] for i in range(count)]) for part in ("mean", "variance"))
    np.testing.assert_allclose(mean, weights.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, weights.var(0), rtol=1e-2, atol=1e-9)
    running = [weights[n] - weights[: n + 1].mean(0) for n in range(4)][-3:]
    for number, expected in enumerate(running):
        found = flat([state[f"deviation.{number}.{i}"] for i in range(count)])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_swag_s_draws_have_half_the_diagonal_and_half_the_low_rank_covariance() -> None:
    posterior = adapted("swag").posterior
    assert isinstance(posterior, SWAG)
    state = posterior.state()
    columns = [state[f"deviation.{number}.0"].double().flatten()[:6] for number in range(4)]
    diagonal = np.diag(state["variance.0"].double().flatten()[:6].numpy())
    low_rank = sum(np.outer(column, column) for column in columns) / (len(columns) - 1)
    posterior._mean, posterior._square = posterior._mean[:1], posterior._square[:1]  # one factor is enough
    drawn = np.stack([posterior.draw(0, key)[0].double().flatten()[:6].numpy() for key in range(1000)])
    expected = 0.5 * (diagonal + low_rank)
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.2 * expected.max())
    np.testing.assert_allclose(drawn.mean(0), state["mean.0"].flatten()[:6], atol=5 * (expected.max() / 1000) ** 0.5)


def test_as_published_swag_has_twice_the_covariance_and_that_of_b_lora_xs_four_times() -> None:
    drawn = {name: adapted("swag", preset=name).posterior for name in ("default", "as-published", "b-lora-xs")}
    deviations = {}
    for name, posterior in drawn.items():
        assert isinstance(posterior, SWAG)
        deviations[name] = posterior.draw(0, 7)[0] - posterior.state()["mean.0"]
    torch.testing.assert_close(deviations["as-published"], math.sqrt(2) * deviations["default"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(deviations["b-lora-xs"], 2 * deviations["default"], rtol=1e-3, atol=1e-6)


def test_swag_needs_two_weights_or_more() -> None:
    system = system_with("swag")
    with pytest.raises(AbmllError, match=r"after step 0 of 1, and needs two or more; give more adaptation.steps"):
        system.adapt(TASKS[0], AdaptationPlan(4, 1))


# -------------------- ensemble


def test_an_ensemble_averages_the_probabilities_of_its_members() -> None:
    system = adapted("ensemble", members=3)
    posterior = system.posterior
    assert isinstance(posterior, Ensemble)
    members = [posterior.draw(number, 0) for number in range(posterior.draws(MEAN))]
    assert len(members) == 3
    assert all(torch.equal(one, other) for one, other in zip(members[0], posterior.parameters, strict=True))
    asked, tables = TASKS[0].test[:3], []
    found = system.predict(asked)
    for member in members:
        for parameter, value in zip(posterior.parameters, member, strict=True):
            parameter.data.copy_(value)
        tables.append([row.probabilities for row in system.predict(asked, MEAN)])
    np.testing.assert_allclose([row.probabilities for row in found], np.mean(tables, axis=0), rtol=1e-6)
    assert len({tuple(map(tuple, table)) for table in tables}) == 3


def test_members_take_each_row_as_often_as_phi_does() -> None:
    rows = questions(5)
    batches = ((rows[3], rows[1]), (rows[0], rows[2]), (rows[4], rows[2]), (rows[1], rows[0]))
    found = reordered(batches, [0, 1, 2])
    assert [len(batch) for batch in found] == [2, 2, 2, 2]
    stream = [row for batch in found for row in batch]
    assert set(stream[:5]) == set(rows)
    assert set(stream[5:]) == {rows[2], rows[1], rows[0]}
    assert found == reordered(batches, [0, 1, 2]) != reordered(batches, [0, 1, 3])


# -------------------- IVON


def test_ivon_finds_minimiser_hessian_and_std_of_a_quadratic() -> None:
    """L(w) = a (w - c)^2 / 2: m -> (a c + delta m0) / (a + delta), h -> a; many copies, so that noise averages out."""
    curvature, minimum, decay = 2.0, 0.7, 0.5
    settings = IVONSettings(lr=0.05, ess=100.0, hess_init=1.8, beta2=0.998, weight_decay=decay, clip=1e9)
    ones = torch.ones(1, 4000)
    state = IVONState(0 * ones, 1.8 * ones, 0 * ones, -0.3 * ones)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 2500):
        noise = torch.randn(ones.shape, generator=generator)
        weights = state.mean + noise / (settings.ess * (state.hessian + decay)).sqrt()
        state = ivon_step(state, curvature * (weights - minimum), noise, step, settings)
    expected = (curvature * minimum + decay * -0.3) / (curvature + decay)
    assert float(state.mean.mean()) == pytest.approx(expected, abs=0.01)
    assert float(state.hessian.mean()) == pytest.approx(curvature, rel=0.05)


def test_ivon_s_first_step_is_that_of_the_formulas() -> None:
    s = IVONSettings(lr=0.1, ess=50.0, beta1=0.9, beta2=0.8, weight_decay=0.3, clip=0.25)
    mean, h, g, noise = np.array([0.2, -0.1]), np.array([0.5, 2.0]), np.array([0.3, -4.0]), np.array([1.5, -0.5])
    tensors = [torch.tensor(value)[None] for value in (mean, h, np.zeros(2), np.array([0.0, 0.1]))]
    found = ivon_step(IVONState(*tensors), torch.tensor(g)[None], torch.tensor(noise)[None], 1, s)
    weights = mean + noise / np.sqrt(50 * (h + 0.3))
    estimate = 50 * (h + 0.3) * (weights - mean) * g
    after = 0.8 * h + 0.2 * estimate + 0.02 * (h - estimate) ** 2 / (h + 0.3)
    way = np.clip((g + 0.3 * (mean - [0.0, 0.1])) / (after + 0.3), -0.25, 0.25)
    np.testing.assert_allclose(found.hessian[0], after)
    np.testing.assert_allclose(found.mean[0], mean - 0.1 * way)
    assert bool((found.hessian + 0.3 > 0).all())


def test_at_the_published_decay_few_steps_hardly_move_ivon_s_stds() -> None:
    """With a short memory and the same constants one noisy estimate takes all noise away."""
    for beta2, moves in ((0.99999, False), (0.8, True)):
        posterior = adapted("ivon", beta2=beta2).posterior
        assert isinstance(posterior, IVON)
        h = flat([posterior.state()[f"hessian.{i}"] for i in range(len(posterior.parameters))])
        assert (float((h / 1e-3 - 1).abs().median()) > 0.5) == moves


# -------------------- BLoB


def test_blob_s_kl_gradients_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, root, centre = (torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.1 for _ in range(3))
    mean.requires_grad_(), root.requires_grad_()
    prior = torch.distributions.Normal(centre, 0.2)
    torch.distributions.kl_divergence(torch.distributions.Normal(mean, root**2), prior).sum().backward()
    by_mean, by_root = kl_gradients(mean.detach(), root.detach(), centre, 0.2)
    assert mean.grad is not None
    assert root.grad is not None
    assert torch.allclose(by_mean, mean.grad)
    assert torch.allclose(by_root, root.grad)


def blob_of(system: System) -> BLoB:
    assert isinstance(system.posterior, BLoB)
    return system.posterior


def test_blob_without_stds_is_the_plain_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.systems.posteriors.blob._uniform", lambda like, index, most: torch.full_like(like, 1e-9))
    system = adapted("blob", kl_weight=0.0, kl_lr=1e-12)
    state, phi = blob_of(system).state(), blob_of(system).parameters
    for index in range(len(phi) // 2):
        assert torch.allclose(state[f"b.{index}"], phi[2 * index], atol=1e-6)
        assert torch.allclose(state[f"mean.{index}"], phi[2 * index + 1], atol=1e-6)


def test_blob_s_stds_descend_the_nll_at_the_draw() -> None:
    """One step at rate 1 without the KL moves G by minus its gradient, against finite differences of the NLL."""
    with float64():
        system = build_system(config_of("blob", kl_weight=0.0, kl_lr=1.0), exact_base())
        scramble(system)
        posterior, batch = blob_of(system), questions(2)
        system.method.begin_task(first=True)
        posterior.start(2)
        before = [root.clone() for root in posterior._root_std]
        means = [mean.clone() for mean in posterior._mean]
        b = [value.clone() for value in posterior._b]
        posterior._take(batch, (0, 1, 2, 3))
        moved = [one - other for one, other in zip(posterior._root_std, before, strict=True)]
        name = noise_key("BLoB", int(step_key((0, 1, 2, 3))))
        generator = torch.Generator().manual_seed(1)
        way = [torch.randn(root.shape, generator=generator) for root in before]

        def loss(size: float) -> float:
            for index, (root, step) in enumerate(zip(before, way, strict=True)):
                noise = posterior._noise(index, name)
                posterior.parameters[2 * index].data.copy_(b[index])
                posterior.parameters[2 * index + 1].data.copy_(means[index] + (root + size * step).square() * noise)
            return float(system.method.inner_loss(system.batcher(batch)[0], key_of(0)).nll.detach())

        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
        found = -sum(float((change * step).sum()) for change, step in zip(moved, way, strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(found) > 1e-6


def test_blob_s_draws_have_mean_m_and_std_g_squared() -> None:
    posterior = blob_of(adapted("blob"))
    state = posterior.state()
    posterior._b, posterior._mean, posterior._root_std = (
        part[:1] for part in (posterior._b, posterior._mean, posterior._root_std)
    )
    drawn = torch.stack([posterior.draw(0, key)[1] for key in range(400)])
    std = state["root_std.0"].square()
    assert torch.allclose(((drawn - state["mean.0"]) / std).mean(), torch.tensor(0.0), atol=0.05)
    assert torch.allclose(((drawn - state["mean.0"]) / std).std(), torch.tensor(1.0), atol=0.05)


def test_blob_s_kl_weights() -> None:
    posterior = blob_of(adapted("blob", kl_schedule="published"))
    batches = round(100 * 6 ** (math.pi / 8) / 2)
    total = 0.0
    for step in range(batches):
        total += kl_weight(posterior.settings, 6, step, 2)
    assert total == pytest.approx(1, rel=1e-6)
    assert kl_weight(blob_of(adapted("blob")).settings, 6, 0, 2) == 1 / 6
