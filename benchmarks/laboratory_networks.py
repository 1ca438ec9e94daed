"""What :mod:`benchmarks.laboratory` does: networks trained alike, tuned, and judged by many samples; all resumable."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import psld_jax as pj
from benchmarks import laboratory_table
from benchmarks.laboratory_table import AS_MANY, HELD_OUT
from benchmarks.train_judge import train_judge
from psld_jax import build, integrators, metrics, tuning
from psld_jax._runtime.journal import Journal, check_same, make_directory, read_json, replace
from psld_jax.data import Dataset, open_dataset
from psld_jax.evaluation import evaluate
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.settings import choose, read_tuned
from psld_jax.sampling.solver import LEARNED
from psld_jax.training.train import train

#: The network and its training, the same for all but for the width; with 16 channels 0.2 million parameters.
COMMON = {
    "model.name": "ncsnpp",
    "model.ch_mult": (1, 2),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (),
    "model.dropout": 0.0,
    "model.embedding_type": "fourier",
    "model.fourier_scale": 1.0,
    "train.batch_size": 128,
    "train.time_sampling": "stratified",
    "train.lr": 1e-3,
    "train.schedule": "cosine",
    "train.ema_decay": 0.999,
    "train.ema_warmup": True,
    "train.sample_every": 0,
    "train.checkpoint_every": 1000,
}

_PRECONDITIONED = {"sde.name": "psld", "model.in_ch": 2, "model.out_ch": 1, "model.data_std": None}

#: What differs: the diffusion, and channels by its blocks. ``None`` stands for the root mean square of the images.
NETWORKS: dict[str, dict[str, Any]] = {
    "psld": {"sde.name": "psld", "model.in_ch": 2, "model.out_ch": 2},
    "psld_preconditioned": _PRECONDITIONED,
    # Trained at EDM's noise levels: against "edm" it differs in the path alone.
    "psld_log_normal": {**_PRECONDITIONED, "train.noise": "log_normal"},
    "cld": {"sde.name": "cld", "sde.mixed": True, "model.in_ch": 2, "model.out_ch": 1},
    "vp": {"sde.name": "vpsde", "sde.beta_min": 0.1, "sde.beta_max": 20.0, "model.in_ch": 1, "model.out_ch": 1},
    "edm": {
        "sde.name": "edm",
        "sde.data_std": None,
        "model.data_std": None,
        "model.in_ch": 1,
        "model.out_ch": 1,
        "train.noise": "log_normal",
    },
    "flow": {"sde.name": "flow", "model.in_ch": 1, "model.out_ch": 1},
}

#: Samplers that are compared; a network gets those that work for its diffusion. ``LEARNED`` are solvers that are
#: learned for a network, one for each budget up to ``LAST_LEARNED``.
SAMPLERS = (
    *("euler_maruyama", "sscs", "ddim", "lambda_ddim_i", "lambda_ddim_ii"),
    *("naive_symplectic_euler", "reduced_symplectic_euler", "conjugate_symplectic_euler"),
    *("naive_velocity_verlet", "reduced_velocity_verlet", "conjugate_velocity_verlet"),
    *("naive_oba", "reduced_oba", "conjugate_oba"),
    *("predictor_corrector", "exponential_multistep", "ancestral"),
    *("unipc", "dpm_solver_pp_3m", "deis", "ipndm", "heun"),
    LEARNED,
)
#: Unless told otherwise: 250, 500 and 1000 would take nine tenths of the time.
BUDGETS = (5, 6, 8, 10, 15, 20, 35, 50, 100)
#: Beyond it nothing is tuned: a setting for the nearest budget serves.
LAST_TUNED = 100
#: Above it little is left to learn, and learning takes long.
LAST_LEARNED = 10
#: How a solver is learned: predictions that a step combines, weight of the distance, batches of a Jacobian.
LEARNING = {"history": 4, "distance": 1.0, "jacobian_batches": 3, "batch_size": 64}

#: Data by name: how images are fitted, epochs of the judge, and by how many pixels its images are shifted.
#: The digits have no test images of their own: a fifth is held out.
DATA: dict[str, tuple[dict[str, Any], int, int]] = {
    "digits": ({"data.name": "digits", "data.holdout": 0.2, "model.image_size": 8}, 40, 1),
    "mnist": ({"data.name": "mnist", "data.fit": "stretch", "model.image_size": 14}, 4, 1),
}

#: Noises of tuning, which no sample of an evaluation has.
_TUNING_SEED = 2**31


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line chooses; what results depend on is written beside them."""

    data: str
    path: str
    image_size: int
    width: int
    networks: tuple[str, ...]
    seeds: int
    steps: int
    samplers: tuple[str, ...]
    budgets: tuple[int, ...]
    sample_seeds: int
    samples: int
    final_seeds: int
    final_samples: int
    batch: int
    tune_samples: int
    candidates: int
    gradient_steps: int
    learn_samples: int
    iterations: int
    judge_epochs: int

    def jobs(self) -> list[tuple[str, int]]:
        """Networks and seeds; the first seed of all comes first."""
        return [(name, seed) for seed in range(self.seeds) for name in self.networks]

    def to_learn(self) -> list[int]:
        """Budgets for which a solver is learned."""
        return [budget for budget in self.budgets if budget <= LAST_LEARNED] if LEARNED in self.samplers else []


class Laboratory:
    """The images and the judge, in ``directory``; and what is made of them there."""

    def __init__(self, directory: Path, options: Options, console: Console):
        self.directory, self.options, self.console = directory, options, console
        make_directory(directory, "the directory of the laboratory")
        self.base = COMMON | DATA[options.data][0] | {"data.path": options.path, "model.image_size": options.image_size}
        self.base |= {"train.steps": options.steps, "train.eval_every": options.steps, "model.nf": options.width}
        self.base |= {"train.warmup": min(200, options.steps // 5)}
        about = {"data": options.data, "image_size": options.image_size, "judge_epochs": options.judge_epochs}
        self._same("images", about)
        self.train, self.held_out = (self._open(split) for split in ("train", "test"))
        self.images, self.others = (build.to_images(d, np.arange(len(d))) for d in (self.train, self.held_out))
        self.data_std = round(float(np.sqrt(np.mean(self.images**2))), 3)

    def _same(self, name: str, about: dict[str, Any]) -> None:
        """Write what results in the directory depend on, or check that it is what they depend on."""
        path, about = self.directory / f"{name}.json", json.loads(json.dumps(about))
        if path.exists():  # and is not written again: another process may work on other networks of the directory
            check_same(str(path), read_json(path), about)
        else:
            replace(path, json.dumps(about) + "\n")

    def _open(self, split: str) -> Dataset:
        c = self.config("vp", 0, data_std=1.0).data
        options = {"image_size": self.options.image_size, "fit": c.fit, "holdout": c.holdout, "labels": True}
        return open_dataset(c.name, c.path, split, **options)

    def config(self, name: str, seed: int, data_std: float | None = None) -> Any:
        """The configuration of a network."""
        std = self.data_std if data_std is None else data_std
        own = {key: std if value is None else value for key, value in NETWORKS[name].items()}
        return build.override(build.load_config("default"), self.base | own | {"seed": seed})

    @functools.cached_property
    def features(self) -> dict[str, metrics.Features]:
        """Of the pixels, and of the judge, which is trained if it is not there."""
        path = self.directory / "judge.npz"
        if not path.exists():
            reach = DATA[self.options.data][2]
            net, accuracy = train_judge(self.train, self.held_out, self.options.judge_epochs, reach, False)
            replace(self.directory / "judge.json", json.dumps({"accuracy": accuracy}) + "\n")
            net.save(path)
        net = metrics.ImageClassifier.open(path)
        judge = metrics.Features("classifier", jax.jit(net.features), self.train.image_shape)
        return {"pixels": metrics.features("pixels"), "classifier": judge}

    @functools.cached_property
    def laws(self) -> dict[str, metrics.Gaussian]:
        """Of the training images, by features; and of the images that were held out, in those of the judge."""
        laws = {name: _law(features, self.images) for name, features in self.features.items()}
        return {**laws, HELD_OUT: _law(self.features["classifier"], self.others)}

    def distances(self, images: np.ndarray) -> dict[str, float]:
        """Frechet distances of images to the training images."""
        return {name: _law(f, images).distance(self.laws[name]) for name, f in self.features.items()}

    def real(self) -> list[dict[str, Any]]:
        """Distances of as many training images, drawn with replacement: those of a sampler without error. And those of
        all images that were held out."""
        o, found = self.options, []
        for count, seeds in ({o.final_samples: o.final_seeds} | {o.samples: o.sample_seeds}).items():
            for seed in range(seeds):
                drawn = np.random.default_rng(seed).integers(len(self.images), size=count)
                found.append({"what": AS_MANY, "images": count, **self.distances(self.images[drawn])})
        return [*found, {"what": HELD_OUT, "images": len(self.others), **self.distances(self.others)}]

    def place(self, name: str, seed: int) -> Path:
        """The directory of a network."""
        return self.directory / f"{name}-{seed}"

    def trained(self, name: str, seed: int) -> pj.Model:
        """The network, trained as far as it is not; ``network.json`` is there once it is."""
        place, config = self.place(name, seed), self.config(name, seed)
        done = place / "network.json"
        if done.exists():
            written = read_json(done)["config"]
            check_same(f"{done} is of a network", written, json.loads(config.to_json()))
        else:
            place.mkdir(exist_ok=True)
            summary = train(config, place, self.console)
            if summary["stopped"]:
                raise SystemExit(f"{summary['stopped']}: {place} is saved; the same command goes on")
            size = sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(pj.load(place).eps_fn.state))
            about = {"network": name, "seed": seed, "numbers": size, **summary, "config": json.loads(config.to_json())}
            replace(done, json.dumps(about, indent=1) + "\n")
        return pj.load(place)

    def tuned(self, name: str, seed: int, model: pj.Model) -> tuple[Any, ...]:
        """Settings of every sampler by budget; of the images, those held out decide."""
        o, place = self.options, self.place(name, seed)
        budgets = [budget for budget in o.budgets if budget <= LAST_TUNED]
        if not o.tune_samples or not budgets:
            return ()
        path, written = place / "tuned.json", place / "tuned_with.json"
        names = usable(model.sde, o.samplers)
        options = {"num_samples": o.tune_samples, "candidates": o.candidates, "gradient_steps": o.gradient_steps}
        about = {**options, "samplers": names, "budgets": budgets}
        if not path.exists() or read_json(written) != about:  # what was tried before is in the log, and not tried again
            found = tuning.tune(
                model,
                budgets,
                names,
                **options,
                target=self.others,
                features=self.features["classifier"],
                seed=_TUNING_SEED,
                log=place / "tuning.jsonl",
                report=lambda row: self.console.print(f"{name}-{seed}: {row.nfe} NFE, {row.setting.describe()}"),
            )
            replace(written, json.dumps(about) + "\n")
            found.write(path)
        return build.tuned_rows(model, str(path))

    def learned(self, name: str, seed: int, model: pj.Model, budget: int) -> pj.Solver:
        """The solver of a budget, learned from the best setting that was tuned, with the images held out as target.

        The noises are those of tuning, which no sample of an evaluation has.
        """
        o, place = self.options, self.place(name, seed)
        path, about = place / f"solver_{budget}.json", {**LEARNING, "num_samples": o.learn_samples}
        if path.exists():
            known = pj.load_solver(path).about
            check_same(str(path), {field: known.get(field) for field in about}, about)
        else:
            tuned = read_tuned(place / "tuned.json")[1] if o.tune_samples else ()
            found = pj.learn(
                model,
                budget,
                choose(dataclasses.replace(model, tuned=tuned), budget),
                **about,
                iterations=o.iterations,
                target=self.others,
                features=self.features["classifier"],
                seed=_TUNING_SEED,
                log=place / f"learning_{budget}.jsonl",
                report=lambda line: self.console.print(f"{name}-{seed}, {budget} NFE learned: {line}", markup=False),
            )
            found.solver.write(path)
        return pj.load_solver(path)

    def _jobs(self, name: str, seed: int, model: pj.Model) -> Iterator[Any]:
        """Every sampler and budget, tuned; and the learned solvers."""
        names, tuned = usable(model.sde, self.options.samplers), self.tuned(name, seed, model)
        yield from evaluate.jobs(model, names, self.options.budgets, tuned, build.sampler_options(model.config))
        for budget in self.options.to_learn():
            solver = self.learned(name, seed, model, budget)
            yield LEARNED, budget, prepare(model, nfe=budget, solver=solver)

    def cells(self, name: str, seed: int) -> list[evaluate.Cell]:
        """Every sampler, budget and seed of samples."""
        o, model = self.options, self.trained(name, seed)
        return self._judged("cells", name, seed, model, self._jobs(name, seed, model), range(o.sample_seeds), o.samples)

    def finals(self, name: str, seed: int, cells: Sequence[evaluate.Cell]) -> list[evaluate.Cell]:
        """The best sampler of every budget, and the solvers that were learned, judged again by samples that the choice
        has not seen."""
        o, model = self.options, self.trained(name, seed)
        chosen = set(laboratory_table.chosen(cells))
        jobs = (job for job in self._jobs(name, seed, model) if job[0] == LEARNED or job[:2] in chosen)
        seeds = range(o.sample_seeds, o.sample_seeds + o.final_seeds)
        return self._judged("finals", name, seed, model, jobs, seeds, o.final_samples)

    def _judged(
        self, file: str, name: str, seed: int, model: pj.Model, jobs: Iterator[Any], seeds: range, num_samples: int
    ) -> list[evaluate.Cell]:
        """Cells with the distance in pixels; in ``others`` those in features of the judge, to the training images and
        to those held out. A network that knows the training images by heart is near to them, and no nearer to the
        others than they are."""
        judge, shape = self.features["classifier"], model.image_shape

        def classifier(pixels: np.ndarray) -> dict[str, float]:
            law = _law(judge, pixels.reshape(-1, *shape))
            return {to: law.distance(self.laws[to]) for to in ("classifier", HELD_OUT)}

        about = {"network": model.fingerprint, "images": self.options.data, "judge_epochs": self.options.judge_epochs}
        return evaluate.evaluate(
            jobs,
            self.laws["pixels"],
            features=self.features["pixels"],
            seeds=seeds,
            num_samples=num_samples,
            batch_size=self.options.batch,
            num_kept=num_samples,
            others=classifier,
            journal=Journal(self.place(name, seed) / f"{file}.jsonl", about, "the laboratory"),
            report=lambda cell: self.console.print(f"{name}-{seed}, {file}: {cell.describe()}"),
        )

    def run(self) -> None:
        """All of it; tables and figures are written anew after every network."""
        about = {name: value for name, value in dataclasses.asdict(self.options).items() if name != "path"}
        found = laboratory_table.Found(about, self.real())
        for name, seed in self.options.jobs():
            cells = self.cells(name, seed)
            finals = self.finals(name, seed, cells)
            found.cells += [{"network": name, "seed": seed, "cell": cell} for cell in cells]
            found.finals += [{"network": name, "seed": seed, "cell": cell} for cell in finals]
            found.networks.append(read_json(self.place(name, seed) / "network.json"))
            laboratory_table.write(self.directory, found)
        self.console.print((self.directory / "laboratory.md").read_text(encoding="utf-8"), markup=False)


def usable(sde: Any, samplers: Sequence[str]) -> list[str]:
    """Those of the samplers that work for a diffusion; a solver that is learned is not among them."""
    return [name for name in samplers if name != LEARNED and integrators.get(name).applies_to(sde)]


def _law(features: metrics.Features, images: np.ndarray) -> metrics.Gaussian:
    moments = metrics.Moments()
    for part in np.array_split(images, -(-len(images) // 1024)):
        moments.add(features(part))
    return moments.gaussian()
