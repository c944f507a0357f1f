"""The contract of `gmfast.models.base.Model`, for each model that `MODELS` names."""

import copy
import inspect
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

from gmfast._seed import first_sample
from gmfast.models import MODELS, Model
from gmfast.models.base import Batch, Cached, Compresses, Guided, Likelihood, Reconstructs, evaluating

MODALITIES = {"images", "sound", "vectors", "text", "strokes", "points", "video"}
#: Sample shape and number of levels.
DATA = {"images": ((1, 8, 8), 17), "sound": ((1, 24), 256), "vectors": ((4,), None)}

UNET = {"channels": 4, "multipliers": (1, 2), "num_blocks": 1, "attention": (4,), "dropout": 0.1}
#: Options of small networks.
SMALL = {
    "consistency": UNET,
    "ddpm": {**UNET, "num_timesteps": 8},
    "edm": UNET,
    "energy": {"channels": 4, "num_scales": 2, "langevin_steps": 3, "buffer_size": 16},
    "flow_matching": UNET,
    "flowpp": {
        "num_couplings": (1, 1, 0),
        "num_filters": 4,
        "num_blocks": 1,
        "num_components": 2,
        "dequantizer_couplings": 1,
        "dequantizer_filters": 4,
        "dequantizer_blocks": 1,
    },
    "gated_pixelcnn": {"nr_layers": 2, "nr_filters": 4, "nr_out_filters": 8},
    "glow": {"num_scales": 2, "num_steps": 1, "width": 4},
    "iaf": {"hidden": (8,), "num_transforms": 2},
    "made": {"hidden": (8,), "num_orders": 2},
    "maf": {"hidden": (8,), "num_transforms": 2},
    "ncsn": {**UNET, "sigma_min": 1.0},
    "nice": {"num_couplings": 2, "hidden": 4, "num_hidden": 1},
    "pixelcnn": {"nr_resnet": 1, "nr_filters": 4, "nr_out_filters": 8},
    "pixelcnnpp": {"nr_resnet": 1, "nr_filters": 4, "nr_logistic_mix": 2},
    "realnvp": {"num_blocks": 1, "num_filters": 4},
    "spline_flow": {"num_transforms": 1, "width": 8, "num_blocks": 1},
    "wavenet": {"num_cycles": 1, "layers_per_cycle": 3, "residual_channels": 4, "skip_channels": 8},
}

models = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> list[tuple[Model, Batch]]:
    """A small model and a batch, prepared, for each modality of the class, conditional where it can be."""
    built, cls = [], MODELS[name]
    for modality in sorted(cls.modalities):
        shape, levels = DATA[modality]
        options = {**cls.data_arguments(shape, levels), **SMALL[name]}
        conditional = "num_labels" in cls.options()
        torch.manual_seed(0)
        model = cls(**options, **({"num_labels": 3} if conditional else {}))
        x = torch.randn(4, *shape)
        if levels is not None:
            x = torch.randint(levels, (4, *shape)) * (2 / (levels - 1)) - 1
        batch = Batch(x, torch.tensor([0, 1, 2, 0]) if conditional else None)
        model.prepare(batch)
        assert model.modality == modality
        built.append((model, batch))
    return built


def label_of(model: Model) -> dict[str, int]:
    return {} if model.num_labels is None else {"label": 1}


@models
def test_class_attributes(name):
    cls = MODELS[name]
    assert issubclass(cls, Model)
    assert cls.modalities and cls.modalities <= MODALITIES
    assert isinstance(cls.family, str) and cls.family
    assert cls.metrics and all(isinstance(unit, str) for unit in cls.metrics.values())
    assert all(isinstance(description, str) for description in cls.requires.values())
    assert cls.prepare_size >= 0 and cls.evaluate_size >= 1


@models
def test_settings_name_options_of_the_constructor(name):
    cls = MODELS[name]
    for settings in cls.settings.values():
        assert settings.keys() <= {"batch_size", "lr", "size", "options"}
        for option, value in settings.get("options", {}).items():
            assert type(value) is type(cls.options()[option])


@models
def test_config_builds_the_same_model(name):
    for model, _ in build(name):
        cls, config = type(model), model.config
        assert config.keys() == cls.options().keys() and all(config[k] == v for k, v in SMALL[name].items())
        assert cls(**config).config == config
        assert cls(**json.loads(json.dumps(config))).config == config  # lists become tuples again
        again = cls(**config)
        again.load_state_dict(model.state_dict())
        config.clear()
        assert model.config  # what is returned is a copy


@models
def test_copies_keep_config_and_state(name):
    for model, _ in build(name):
        copies = [copy.deepcopy(model)]
        if not any(is_parametrized(module) for module in model.modules()):  # which torch does not pickle
            copies.append(pickle.loads(pickle.dumps(model)))
        for again in copies:
            assert again.config == model.config and again.modality == model.modality
            assert again.state_dict().keys() == model.state_dict().keys()


@models
def test_options_are_the_constructor_s_arguments(name):
    cls = MODELS[name]
    named = {
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert named <= cls.options().keys()
    assert inspect.Parameter.empty not in cls.options().values()  # the published model is the default
    shape, levels = DATA[min(cls.modalities)]
    assert cls.data_arguments(shape, levels).keys() | SMALL[name].keys() <= cls.options().keys()


@models
def test_sample(name):
    for model, batch in build(name):
        names = type(model).sample_options()
        known = set(inspect.signature(model.sample).parameters)
        if "options" in known:  # those of the model's draw
            known |= inspect.signature(model.draw).parameters.keys()
        assert "seed" in names and set(names) < known
        assert "label" in names or "num_labels" not in model.options()
        model.train()
        x = model.sample(2, seed=7, **label_of(model))
        assert x.shape == (2, *batch.x.shape[1:]) and x.isfinite().all()
        assert torch.equal(x, model.sample(2, seed=7, **label_of(model)))
        assert all(module.training for module in model.modules())
        with pytest.raises(ValueError, match=f"n: expected a number of {model.modality}s?, got -1"):
            model.sample(-1, **label_of(model))
        with pytest.raises(TypeError, match="seed: expected"):
            model.sample(1, seed="7", **label_of(model))
        if model.num_labels is not None:
            with pytest.raises(
                ValueError, match="label: expected integers from 0 to 2, got values from 3 to 3"
            ):
                model.sample(1, label=3)


@models
def test_samples_counted_from_another(name):
    """A process that draws some of the samples draws what it would have drawn of all."""
    for model, _ in build(name):
        methods = [{"method": m} for m in ("cached", "naive")] if isinstance(model, Cached) else [{}]
        for options in methods:
            whole = model.sample(5, seed=0, **options, **label_of(model))
            with first_sample(2):
                part = model.sample(3, seed=0, **options, **label_of(model))
            # But for the rounding of torch's products and convolutions, which depends on the batch size.
            torch.testing.assert_close(part, whole[2:], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(part, whole[:3], rtol=1e-2, atol=1e-2)


@models
def test_evaluation_counted_from_another(name):
    for model, batch in build(name):
        if not isinstance(model, Likelihood):
            continue
        options = {"seed": 0} if "seed" in inspect.signature(model.log_prob).parameters else {}
        with torch.no_grad(), evaluating(model):
            whole = model.log_prob(*batch, **options)
            with first_sample(2):
                part = model.log_prob(*(t if t is None else t[2:] for t in batch), **options)
        torch.testing.assert_close(part, whole[2:], rtol=1e-4, atol=1e-4)


@models
def test_evaluate_gives_each_sample_s_metrics(name):
    for model, batch in build(name):
        with torch.no_grad(), evaluating(model):
            metrics = model.evaluate(batch)
        assert list(metrics) == list(model.metrics)
        for values in metrics.values():
            assert values.shape == (4,) and values.isfinite().all()


@models
def test_players_share_no_parameter_and_every_loss_is_a_player_s(name):
    for model, batch in build(name):
        players = model.players()
        parameters = [p for player in players.values() for p in player.parameters]
        assert len({id(p) for p in parameters}) == len(parameters) > 0
        assert {id(p) for p in parameters} <= {id(p) for p in model.parameters()}
        for player, losses in model.training_step(batch, 0):
            losses["loss"].backward()
            assert losses["loss"].dim() == 0
            assert all(p.grad is None or p.grad.isfinite().all() for p in players[player].parameters)
            assert any(p.grad is not None for p in players[player].parameters)


@models
def test_mix_ins(name):
    """They stand before `Model` in the method resolution order, to replace what it does by default."""
    order = MODELS[name].mro()
    for mix_in in (Likelihood, Cached, Guided, Reconstructs, Compresses):
        assert mix_in not in order or order.index(mix_in) < order.index(Model)


@models
def test_build_on_takes_what_the_model_requires(name):
    (model, _), *_ = build(name)
    with pytest.raises(ValueError, match="nonsense: expected"):
        model.build_on(nonsense=model)


def test_importing_the_package_imports_no_family():
    code = """
import sys
import gmfast.models as models

def loaded():
    return {name.split(".")[2] for name in sys.modules if name.startswith("gmfast.models.")}

assert loaded() <= {"base", "networks", "registry"}, loaded()
assert "Glow" in dir(models) and "glow" in models.MODELS and len(list(models.MODELS)) > 10
assert models.MODELS.resolve("Glow") == "glow"
assert loaded() <= {"base", "networks", "registry"}, loaded()
models.Glow
assert loaded() == {"base", "flows", "networks", "registry"}, loaded()
assert not hasattr(models, "Gloow")
slow = {"accelerate", "datasets", "matplotlib", "torch._dynamo", "torchdata"} & sys.modules.keys()
assert not slow, f"what takes long to import: {slow}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("PixelCNN++", "pixelcnnpp"),
        ("pixel-cnn-pp", "pixelcnnpp"),
        ("PixelCNNPP", "pixelcnnpp"),
        ("Flow++", "flowpp"),
        ("Glow", "glow"),
        ("GLOW", "glow"),
        ("SplineFlow", "spline_flow"),
        ("spline flow", "spline_flow"),
        ("spline-flow", "spline_flow"),
        ("EnergyModel", "energy"),
        ("ConsistencyModel", "consistency"),
    ],
)
def test_spellings(spelling, name):
    assert MODELS.resolve(spelling) == MODELS.resolve(name) == name


def test_unknown_names():
    with pytest.raises(ValueError, match=r"model: expected one of .*, got 'glwo'; did you mean 'glow'\?"):
        MODELS.resolve("glwo")
    with pytest.raises(
        ValueError, match=r"model: expected one of .*, got 'PixelCNM'; did you mean 'pixelcnn'\?"
    ):
        MODELS.resolve("PixelCNM")
    with pytest.raises(ValueError, match=r"model: expected one of .*, got 'transmogrifier'$"):
        MODELS.resolve("transmogrifier")


@models
def test_subclasses_record_their_own_arguments(name):
    """With constructors of their own, which hand on what they are given, or have none."""
    cls = MODELS[name]
    modality = min(cls.modalities)
    options = {**cls.data_arguments(*DATA[modality]), **SMALL[name]}

    class Inherits(cls):
        pass

    class Fixed(cls):
        def __init__(self, schedule=3):
            super().__init__(**options)
            self.own = schedule

    class HandsOn(cls):
        def __init__(self, *args, own=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.own = own

    assert Inherits.options() == cls.options() and Inherits(**options).config == cls(**options).config
    assert Fixed(5).config == {"schedule": 5} and Fixed.options() == {"schedule": 3}
    leading, *_ = list(inspect.signature(cls.__init__).parameters)[1:]
    rest = {key: value for key, value in options.items() if key != leading}
    made = HandsOn(options[leading], own=2, **rest) if leading in options else HandsOn(own=2, **options)
    assert made.own == made.config["own"] == 2
    assert {key: made.config[key] for key in options} == {key: cls(**options).config[key] for key in options}
    again = HandsOn(**made.config)
    assert again.config == made.config
    model = Fixed()
    shape, levels = DATA[modality]
    x = torch.randn(2, *shape)
    if levels is not None:
        x = torch.randint(levels, (2, *shape)) * (2 / (levels - 1)) - 1
    model.prepare(Batch(x))
    assert model.loss(x).isfinite()


def test_mix_ins_come_before_the_model():
    with pytest.raises(TypeError, match="Wrong: expected Likelihood before Model among its bases"):

        class Wrong(Model, Likelihood):
            pass
