"""The Inception of FID against PyTorch, where that is installed, and against numbers that PyTorch gave elsewhere."""

import dataclasses
import hashlib

import convert_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psld_jax._runtime.abstract import shapes_of
from psld_jax.metrics import inception

#: Random images; no more, as a forward pass takes seconds.
IMAGES = np.random.RandomState(1).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8)

#: Features to look at: one of each branch of the last block.
CHANNELS = [52, 379, 756, 1140, 1526, 1912]

# What PyTorch 2.13 gives for the network below with the weights below and IMAGES: those features, and every 252nd
# logit. RandomState's streams are frozen, so the weights are the same everywhere.
EXPECTED = {
    "tf1": (
        [
            [2.876856, 5.843938, 2.785906, 4.575143, 4.806338, 4.820432],
            [2.946828, 5.823884, 2.980147, 4.652179, 4.814161, 5.303112],
        ],
        [[4.586208, 7.955781, -3.203019, -9.7852], [4.662542, 8.254457, -3.217527, -10.09585]],
    ),
    "torch": (
        [
            [2.928946, 5.852141, 2.733143, 4.627572, 4.55988, 5.059586],
            [3.170335, 5.835762, 2.883504, 4.711241, 4.735778, 5.249568],
        ],
        [[4.451648, 8.006647, -3.269384, -9.869535], [4.69319, 8.111802, -3.323796, -10.07626]],
    ),
}


def random_weights():
    """A state dict, from the names and shapes of the Flax network; scaled so that activations stay of order 1."""
    rng, state = np.random.RandomState(0), {}
    shapes = nnx.to_pure_dict(nnx.state(shapes_of(lambda rngs: inception.InceptionV3(rngs=rngs))))
    for name, shape in sorted(shapes["convs"].items()):
        height, width, channels, out = shape["kernel"].shape
        kernel = rng.standard_normal((out, channels, height, width)) * np.sqrt(2 / (channels * height * width))
        state[f"{name}.conv.weight"] = kernel
        state[f"{name}.bn.weight"], state[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, (2, out))
        state[f"{name}.bn.bias"], state[f"{name}.bn.running_mean"] = rng.normal(0, 0.1, (2, out))
    state["fc.weight"], state["fc.bias"] = rng.normal(0, 2048**-0.5, (1008, 2048)), rng.standard_normal(1008)
    return {name: value.astype(np.float32) for name, value in state.items()}


def write(path, state):
    """A file as of torch.save(state), with all tensors in one storage."""
    flat, offsets = np.concatenate([value.ravel() for value in state.values()]), {}
    at = 0
    for name, value in state.items():
        offsets[name], at = at, at + value.size
    stored = files.storage("0", flat.size)
    tensors = {name: files.tensor(stored, value.shape, offset=offsets[name]) for name, value in state.items()}
    path.write_bytes(files.zip_file(files.program(files.mapping(tensors, ordered=True)), {"0": flat.tobytes()}))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file, removed afterwards: it has 96 MB, and pytest keeps what is in its folders."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    state = random_weights()
    write(path, {**state, "AuxLogits.fc.bias": np.zeros(3, np.float32)})
    yield path, state
    path.unlink()


def close(values, expected):
    """Float32 through dozens of layers, with sums in another order: below 1e-6 where it was measured."""
    assert np.linalg.norm(np.asarray(values) - np.asarray(expected)) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.slow
def test_a_forward_pass_gives_the_numbers_of_torch(weights):
    """The only one without PyTorch: it takes seconds. JAX arrays, as numpy ones are padded to batches of 64."""
    net = inception.read_inception(weights[0], sha256=None)
    features = inception.inception_features(net)
    assert features.name == "inception-tf1-truncate"
    values = np.asarray(features(jnp.asarray(IMAGES)))
    assert values.shape == (2, 2048) and values.dtype == np.float32
    close(values[:, CHANNELS], EXPECTED["tf1"][0])
    close(net.logits(values)[:, ::252], EXPECTED["tf1"][1])
    biased, unbiased = np.asarray(net.logits(values)), np.asarray(net.logits(values, bias=False))
    np.testing.assert_allclose(biased - unbiased, [weights[1]["fc.bias"]] * 2, atol=1e-5)  # float32 near 10


def test_names_and_shapes_are_those_of_the_file():
    """Facts of pytorch-fid's network, not taken from this one."""
    state = random_weights()
    assert len(state) == 94 * 5 + 2
    assert state["Conv2d_4a_3x3.conv.weight"].shape == (192, 80, 3, 3)
    assert state["Mixed_5b.branch_pool.conv.weight"].shape == (32, 192, 1, 1)
    assert state["Mixed_6a.branch3x3.conv.weight"].shape == (384, 288, 3, 3)
    assert state["Mixed_6d.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7a.branch7x7x3_2.conv.weight"].shape == (192, 192, 1, 7)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["Mixed_7c.branch1x1.conv.weight"].shape == (320, 2048, 1, 1)
    trained = sum(value.size for name, value in state.items() if "running" not in name)
    assert trained == 23_850_960  # torchvision's 23,834,568 without its auxiliary head, and 8 classes more


def by_hand(row, how):
    """Bilinear interpolation of one row to 299, pixel by pixel."""
    result = np.empty(299)
    for i in range(299):
        at = i * len(row) / 299 if how == "tf1" else max((i + 0.5) * len(row) / 299 - 0.5, 0)
        low = int(at)
        high = min(low + 1, len(row) - 1)
        result[i] = row[low] + (at - low) * (row[high] - row[low])
    return result


@pytest.mark.parametrize("how", inception.RESIZES)
@pytest.mark.parametrize("shape", [(32, 24), (299, 299), (350, 1)])
def test_resize(how, shape):
    levels = np.random.RandomState(2).randint(0, 256, (1, *shape, 1)).astype(np.float32)
    expected = np.apply_along_axis(by_hand, 0, levels[0, :, :, 0], how)
    expected = np.apply_along_axis(by_hand, 1, expected, how)
    expected = (expected - 128) / 128 if how == "tf1" else expected / 127.5 - 1
    result = inception.resize(levels, how)
    assert result.shape == (1, 299, 299, 3) and result.dtype == jnp.float32
    for channel in range(3):  # grey is repeated
        np.testing.assert_allclose(result[0, :, :, channel], expected, atol=1e-6)  # float32 near 1
    colours = np.concatenate([levels, 0 * levels, 255 - levels], axis=-1)
    np.testing.assert_allclose(inception.resize(colours, how)[..., 0], result[..., 0], atol=1e-6)


def test_levels():
    grid = np.arange(256, dtype=np.uint8)
    for how in inception.LEVELS:  # images of levels keep them, whatever is done to others
        np.testing.assert_array_equal(inception.image_levels(grid), grid)
        np.testing.assert_array_equal(inception.image_levels(grid / np.float32(127.5) - np.float32(1), how), grid)
    images = np.array([-2.0, -0.999, 0.0, 0.005, 0.999, 2.0])
    np.testing.assert_array_equal(inception.image_levels(images), [0, 0, 127, 128, 254, 255])
    np.testing.assert_array_equal(inception.image_levels(images, "round"), [0, 0, 128, 128, 255, 255])
    assert np.isnan(inception.image_levels(np.array([np.nan])))[0]


def test_bad_arguments_and_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'tf1'"):
        inception.inception_features(tmp_path / "none.pth", "tf2")
    with pytest.raises(ValueError, match="Did you mean 'round'"):
        inception.inception_features(tmp_path / "none.pth", levels="rounded")
    with pytest.raises(ValueError, match="Allowed: logits, logits_unbiased, pool3"):
        inception.inception_features(tmp_path / "none.pth", output="fc")
    with pytest.raises(ValueError, match="Did you mean 'truncate'"):
        inception.image_levels(np.zeros(1), "truncated")
    with pytest.raises(ValueError, match="int32"):
        inception.image_levels(np.zeros(1, np.int32))
    for shape in ((2, 3, 32, 32), (32, 32, 3), (1, 0, 4, 3)):
        with pytest.raises(ValueError, match="1 or 3 channels, last"):
            inception.resize(np.zeros(shape))
    with pytest.raises(ValueError, match="unknown resize 'bicubic'"):
        inception.resize(np.zeros((1, 4, 4, 3)), "bicubic")


def test_shapes_are_checked_when_features_are_taken():
    net = shapes_of(lambda rngs: inception.InceptionV3(rngs=rngs))
    features = inception.inception_features(net, "torch", levels="round", output="logits_unbiased")
    assert features.name == "inception-torch-round-logits_unbiased"
    graph, state = nnx.split(net)

    def logits(state, levels):
        net = nnx.merge(graph, state)
        return net.logits(net(inception.resize(levels)))

    result = jax.eval_shape(logits, state, np.zeros((5, 8, 8, 1)))
    assert result.shape == (5, 1008)
    with pytest.raises(ValueError, match=r"got shape \(5, 3, 8, 8\)"):
        features(jnp.zeros((5, 3, 8, 8)))
    as_they_come = dataclasses.replace(features, fn=lambda images: images)
    assert as_they_come(jnp.zeros((1, 8, 8, 3), jnp.uint8)).dtype == np.uint8  # other features refuse levels


FIRST = {
    "Conv2d_1a_3x3.conv.weight": np.ones((32, 3, 3, 3), np.float32),
    "Conv2d_1a_3x3.bn.weight": np.ones(32, np.float32),
    "Conv2d_1a_3x3.bn.bias": np.ones(32, np.float32),
    "Conv2d_1a_3x3.bn.running_mean": np.ones(32, np.float32),
    "Conv2d_1a_3x3.bn.running_var": np.ones(32, np.float32),
}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"Conv2d_1a_3x3.bn.bias": None}, r"holds no 'Conv2d_1a_3x3.bn.bias'"),
        ({}, r"holds no 'Conv2d_2a_3x3.conv.weight'"),
        (
            {"Conv2d_1a_3x3.conv.weight": np.ones((32, 1, 3, 3), np.float32)},
            r"'Conv2d_1a_3x3.conv.weight' in .* has shape \(32, 1, 3, 3\); FID's Inception has \(32, 3, 3, 3\)",
        ),
        ({"Conv2d_1a_3x3.bn.running_var": -np.ones(32, np.float32)}, r"'Conv2d_1a_3x3' in .* a variance is negative"),
        ({"Conv2d_1a_3x3.bn.weight": np.full(32, np.nan, np.float32)}, r"'Conv2d_1a_3x3' in .* are not finite"),
    ],
)
def test_state_dicts_of_other_networks(tmp_path, changed, message):
    path = tmp_path / "weights.pth"
    write(path, {name: value for name, value in {**FIRST, **changed}.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        inception.read_inception(path, sha256=None)


def test_files_that_are_not_the_weights(tmp_path):
    path = tmp_path / "weights.pth"
    write(path, FIRST)
    with pytest.raises(ValueError, match=f"has the SHA-256 .*, not {inception.SHA256}: delete it"):
        inception.read_inception(path)
    with pytest.raises(ValueError, match="holds no 'Conv2d_2a"):
        inception.read_inception(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    # A pickle that would run a command: the safe reader names what it mentions, and runs nothing.
    marker = tmp_path / "ran"
    path.write_bytes(files.zip_file(files.program(files.call("os.system", files.text(f"touch {marker}")))))
    with pytest.raises(ValueError, match=r"weights\.pth: .*os\.system"):
        inception.read_inception(path, sha256=None)
    assert not marker.exists()
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="torch.save did not write it"):
        inception.read_inception(path, sha256=None)
    with pytest.raises(FileNotFoundError):
        inception.read_inception(tmp_path / "none.pth")


def test_download(tmp_path):
    """From a file, as from a server: urllib opens both."""
    source, path = tmp_path / "source", tmp_path / "cache" / "weights.pth"
    source.write_bytes(bytes(range(256)) * 3000)
    sha256, url = hashlib.sha256(source.read_bytes()).hexdigest(), source.as_uri()
    with pytest.raises(ValueError, match=f"sent a file with the SHA-256 {sha256}, not {inception.SHA256}"):
        inception.download(path, url=url)
    assert not list(path.parent.iterdir())
    with pytest.raises(OSError, match="fetch it by other means"):
        inception.download(path, url=url + "x", sha256=sha256)
    assert not list(path.parent.iterdir())
    assert inception.download(path, url=url, sha256=sha256) == path
    assert path.read_bytes() == source.read_bytes() and list(path.parent.iterdir()) == [path]
    source.unlink()
    assert inception.download(path, url=url, sha256=sha256) == path  # it is there
    path.write_bytes(b"another")
    with pytest.raises(ValueError, match="is there with the SHA-256"):
        inception.download(path, url=url, sha256=sha256)
    assert path.read_bytes() == b"another"


def test_a_download_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    source, path = tmp_path / "source", tmp_path / "cache" / "weights.pth"
    source.write_bytes(b"x" * 10)

    class Stopped:
        def update(self, chunk):
            assert [p.suffix for p in path.parent.iterdir()] == [".part"]
            raise KeyboardInterrupt

    monkeypatch.setattr(inception.hashlib, "sha256", Stopped)
    with pytest.raises(KeyboardInterrupt):
        inception.download(path, url=source.as_uri())
    assert not list(path.parent.iterdir())


def torch_network(torch):
    """The same network in PyTorch, from the definitions of its layers."""
    nn, relu, join = torch.nn, torch.nn.functional.relu, lambda *maps: torch.cat(maps, dim=1)
    mean = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    halve = nn.MaxPool2d(3, 2)

    class Unit(nn.Module):
        def __init__(self, channels, width, *args, **options):
            super().__init__()
            self.conv = nn.Conv2d(channels, width, *args, bias=False, **options)
            self.bn = nn.BatchNorm2d(width, eps=0.001)

        def forward(self, x):
            return relu(self.bn(self.conv(x)))

    class A(nn.Module):
        def __init__(self, channels, pool):
            super().__init__()
            self.branch1x1 = Unit(channels, 64, 1)
            self.branch5x5_1 = Unit(channels, 48, 1)
            self.branch5x5_2 = Unit(48, 64, 5, padding=2)
            self.branch3x3dbl_1 = Unit(channels, 64, 1)
            self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
            self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
            self.branch_pool = Unit(channels, pool, 1)

        def forward(self, x):
            double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
            return join(self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(mean(x)))

    class B(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch3x3 = Unit(288, 384, 3, stride=2)
            self.branch3x3dbl_1 = Unit(288, 64, 1)
            self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
            self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

        def forward(self, x):
            double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
            return join(self.branch3x3(x), double, halve(x))

    class C(nn.Module):
        def __init__(self, width):
            super().__init__()
            row, column = {"kernel_size": (1, 7), "padding": (0, 3)}, {"kernel_size": (7, 1), "padding": (3, 0)}
            self.branch1x1 = Unit(768, 192, 1)
            self.branch7x7_1 = Unit(768, width, 1)
            self.branch7x7_2 = Unit(width, width, **row)
            self.branch7x7_3 = Unit(width, 192, **column)
            self.branch7x7dbl_1 = Unit(768, width, 1)
            self.branch7x7dbl_2 = Unit(width, width, **column)
            self.branch7x7dbl_3 = Unit(width, width, **row)
            self.branch7x7dbl_4 = Unit(width, width, **column)
            self.branch7x7dbl_5 = Unit(width, 192, **row)
            self.branch_pool = Unit(768, 192, 1)

        def forward(self, x):
            single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
            double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
            double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
            return join(self.branch1x1(x), single, double, self.branch_pool(mean(x)))

    class D(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch3x3_1 = Unit(768, 192, 1)
            self.branch3x3_2 = Unit(192, 320, 3, stride=2)
            self.branch7x7x3_1 = Unit(768, 192, 1)
            self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
            self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
            self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

        def forward(self, x):
            long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
            return join(self.branch3x3_2(self.branch3x3_1(x)), long, halve(x))

    class E(nn.Module):
        def __init__(self, channels, pool):
            super().__init__()
            self.pool = pool
            row, column = {"kernel_size": (1, 3), "padding": (0, 1)}, {"kernel_size": (3, 1), "padding": (1, 0)}
            self.branch1x1 = Unit(channels, 320, 1)
            self.branch3x3_1 = Unit(channels, 384, 1)
            self.branch3x3_2a = Unit(384, 384, **row)
            self.branch3x3_2b = Unit(384, 384, **column)
            self.branch3x3dbl_1 = Unit(channels, 448, 1)
            self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
            self.branch3x3dbl_3a = Unit(384, 384, **row)
            self.branch3x3dbl_3b = Unit(384, 384, **column)
            self.branch_pool = Unit(channels, 192, 1)

        def forward(self, x):
            single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
            single = join(self.branch3x3_2a(single), self.branch3x3_2b(single))
            double = join(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double))
            return join(self.branch1x1(x), single, double, self.branch_pool(self.pool(x)))

    layers = {
        "Conv2d_1a_3x3": Unit(3, 32, 3, stride=2),
        "Conv2d_2a_3x3": Unit(32, 32, 3),
        "Conv2d_2b_3x3": Unit(32, 64, 3, padding=1),
        "pool_1": halve,
        "Conv2d_3b_1x1": Unit(64, 80, 1),
        "Conv2d_4a_3x3": Unit(80, 192, 3),
        "pool_2": halve,
        **{"Mixed_5b": A(192, 32), "Mixed_5c": A(256, 64), "Mixed_5d": A(288, 64), "Mixed_6a": B()},
        **{"Mixed_6b": C(128), "Mixed_6c": C(160), "Mixed_6d": C(160), "Mixed_6e": C(192), "Mixed_7a": D()},
        "Mixed_7b": E(1280, mean),
        "Mixed_7c": E(2048, nn.MaxPool2d(3, 1, padding=1)),
        "mean": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(2048, 1008),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net.eval()


def torch_resize(torch, images, how):
    """The network's input ``[n, 3, 299, 299]``."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if how == "torch":
        return 2 * torch.nn.functional.interpolate(x / 255, (299, 299), mode="bilinear", align_corners=False) - 1
    for axis in (2, 3):  # TensorFlow 1: pixels at i * size / 299
        size = x.shape[axis]
        at = torch.arange(299) * (size / 299)
        low = at.floor().long()
        share = (at - low).reshape(-1, *[1] * (3 - axis))
        high = (low + 1).clamp(max=size - 1)
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return (x - 128) / 128


@pytest.mark.parametrize("zipped", [True, False])
def test_against_torch(weights, tmp_path, zipped):
    """Files of torch.save in both its formats; both resizes; with and without bias."""
    torch = pytest.importorskip("torch")
    net, path = torch_network(torch), tmp_path / "saved.pth"
    tensors = {name: torch.from_numpy(value) for name, value in weights[1].items()}
    wrong = net.load_state_dict(tensors, strict=False)
    assert not wrong.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in wrong.missing_keys)
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    read = inception.read_inception(path, sha256=None)
    path.unlink()
    for how in inception.RESIZES:
        with torch.no_grad():
            pool3 = net[:-1](torch_resize(torch, IMAGES, how))
            logits = net.fc(pool3).numpy()
        assert 0.1 < pool3.std() < 10  # activations are of order 1, so that errors of a layer are not hidden
        close(inception.inception_features(read, how)(jnp.asarray(IMAGES)), pool3.numpy())
        for output, expected in (("logits", logits), ("logits_unbiased", logits - net.fc.bias.detach().numpy())):
            close(inception.inception_features(read, how, output=output)(jnp.asarray(IMAGES)), expected)
        close(pool3.numpy()[:, CHANNELS], EXPECTED[how][0])
        close(logits[:, ::252], EXPECTED[how][1])
