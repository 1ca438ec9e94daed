"""Building objects from configurations. Nothing else in the package reads a ConfigDict.

``configuration`` finds and overrides configurations, ``parts`` makes diffusions, data, losses and optimisers of them,
``model`` makes whole models, and ``conditions`` reads what samples are conditioned on.
"""

from psld_jax.build._kinds import check_fields
from psld_jax.build.conditions import has_guidance, steer_options, test_images, to_images, warn_of_data_std
from psld_jax.build.configuration import (
    check_overrides,
    config_directory,
    fields,
    find_config,
    from_dict,
    load_config,
    override,
)
from psld_jax.build.initial import initial_network
from psld_jax.build.model import (
    MODELS,
    Classifier,
    Model,
    build_model,
    check_model,
    load,
    network_model,
    open_network,
    tuned_for,
    tuned_rows,
)
from psld_jax.build.own import from_denoiser, from_function
from psld_jax.build.parts import (
    TRAINABLE,
    abstract_network,
    build_data,
    build_held_out,
    build_loss,
    build_optimizer,
    build_sde,
    check_weights,
    last_step,
    network_images,
    network_options,
    sampler_hyper,
    sampler_options,
)

__all__ = [
    "MODELS",
    "TRAINABLE",
    "Classifier",
    "Model",
    "abstract_network",
    "build_data",
    "build_held_out",
    "build_loss",
    "build_model",
    "build_optimizer",
    "build_sde",
    "check_fields",
    "check_model",
    "check_overrides",
    "check_weights",
    "config_directory",
    "fields",
    "find_config",
    "from_denoiser",
    "from_dict",
    "from_function",
    "initial_network",
    "last_step",
    "load",
    "load_config",
    "network_images",
    "network_model",
    "network_options",
    "open_network",
    "override",
    "sampler_hyper",
    "sampler_options",
    "has_guidance",
    "steer_options",
    "test_images",
    "to_images",
    "tuned_for",
    "tuned_rows",
    "warn_of_data_std",
]
