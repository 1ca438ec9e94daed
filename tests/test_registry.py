"""One file gives a diffusion or a set of images its name, in configurations as well."""

from unittest import mock

import numpy as np
import pytest

import psld_jax as pj
from psld_jax import build, data, integrators
from psld_jax._runtime.registry import Registry
from psld_jax.data import source
from psld_jax.sde import named

DIFFUSION = '''
from psld_jax.sde import LinearSDE, register


@register("brownian")
class Brownian(LinearSDE):
    """``dx = -pull beta x dt + sqrt(2 pull beta) dw``."""

    def __init__(self, pull=0.5, beta_min=1.0, beta_max=9.0):
        super().__init__([[-pull]], [[2 * pull]], beta_min=beta_min, beta_max=beta_max)
        self.pull = pull
'''
IMAGES = """
import numpy as np

from psld_jax.data.source import Source, register


@register("black")
def read_black(path, split, labels):
    return Source(np.zeros((3, 4, 4, 1), np.uint8), None, None, False, str(path))
"""


@pytest.fixture
def one_file_more(tmp_path):
    """A file in ``psld_jax/sde`` and one in ``psld_jax/data``, for as long as the test lasts."""
    assert pj.sde.available() and data.available()  # all that is there, before it is kept
    with mock.patch.dict(named._REGISTRY.entries), mock.patch.dict(source.READERS.entries):
        for package, name, content in ((pj.sde, "brownian", DIFFUSION), (data, "black", IMAGES)):
            (tmp_path / package.__name__).mkdir()
            (tmp_path / package.__name__ / f"{name}_of_a_test.py").write_text(content)
        with (
            mock.patch.object(pj.sde, "__path__", [*pj.sde.__path__, str(tmp_path / "psld_jax.sde")]),
            mock.patch.object(data, "__path__", [*data.__path__, str(tmp_path / "psld_jax.data")]),
        ):
            Registry._import.cache_clear()
            yield
    Registry._import.cache_clear()


def test_a_diffusion_is_one_file_and_its_arguments_are_fields(one_file_more):
    config = build.override(build.load_config("digits"), {"sde.name": "brownian", "sde.pull": 2.0})
    sde = build.build_sde(config)
    assert sde.pull == 2.0 and sde.beta_min == 8.0  # what the configuration says, not the constructor
    np.testing.assert_allclose(sde.prior_cov(), 1, atol=1e-6)
    assert build.from_dict(config.to_dict()) == config  # as a checkpoint stores it
    assert pj.generate(build.build_model(config), "ddim", nfe=3, n=2).shape == (2, 8, 8, 1)
    assert "pull" not in pj.sde.parameters("psld")


def test_a_set_of_images_is_one_file(one_file_more, tmp_path):
    assert "black" in data.available()
    assert data.open_dataset("black", tmp_path).describe() == "black train: 3 images 4 x 4 x 1, no labels"


def test_what_is_not_there_is_not_in_a_configuration():
    assert "brownian" not in pj.sde.available() and "black" not in data.available()
    with pytest.raises(ValueError, match="unknown config field 'sde.pull'"):
        build.override(build.load_config("digits"), {"sde.pull": 2.0})
    with pytest.raises(ValueError, match="unknown config.sde.name 'psdl'. Did you mean 'psld'?"):
        build.build_sde(build.override(build.load_config("digits"), {"sde.name": "psdl"}))
    with pytest.raises(ValueError, match="unknown diffusion 'vp'. Did you mean 'vpsde'?"):
        pj.sde.get("vp")


def test_a_name_is_given_once_and_a_configuration_knows_every_argument():
    assert "mnist" in data.available()  # which imports the files
    for register, thing in (
        (pj.sde.register("psld"), pj.sde.PSLD),
        (data.register("mnist"), lambda path, split, labels: None),
        (integrators.register("euler", order=1), lambda sde, t, s: []),
    ):
        with pytest.raises(ValueError, match="is registered twice"):
            register(thing)
    with pytest.raises(ValueError, match="'base' needs defaults for drift, diffusion"):
        pj.sde.register("base")(pj.sde.LinearSDE)
