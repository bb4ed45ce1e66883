"""A run's network in the precision that it is deployed or exported in, and the unpruned network in the same one."""

from __future__ import annotations

from aap_hw.compile.keys.precision import (
    EXPORTED_PRECISIONS,
    FP32,
    HALF,
    INT8_HALF,
    MIXTURES,
    NETWORK_PRECISIONS,
    OTHERS,
    NetworkPrecision,
    unpruned_in,
)
from aap_hw.compile.keys.target import require_precision
from aap_hw.deploy.form import (
    Form,
    beside_half,
    form_of,
    in_half,
    in_half_for_timing,
    in_int8,
    in_int8_for_timing,
    taking_pixels,
)
from aap_hw.device.connection import target_of
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.prune.defaults import CALIBRATION_IMAGES
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.samples import are_made_up, calibration_of
from aap_hw.train.samples import Samples


def form_of_run(
    network: PrunedNetwork,
    data: Samples,
    precision: str | None,
    profile: DeviceProfile | None,
    *,
    is_retrained: bool = False,
) -> Form:
    """A run's network in a precision, by default the one that it was pruned for, with its scales if it has any.

    It is for the device of a profile, or without one for an ONNX file. If other code trained its weights since, or its
    scales are of made-up samples, ranges of values are measured anew.

    Raises
    ------
    UserError : there is no such precision there, or it is int8 and there are no samples to measure ranges on.
    """
    inputs, record = network.origin.inputs, network.record
    form, of_run = form_of(network.module, inputs.names), network.precision
    wanted = supported(precision, of_run, profile)
    if wanted in OTHERS and are_made_up(data):
        raise UserError(
            "the run has no samples of what the network will see, on which int8 measures the ranges of values; "
            "give --data"
        )
    if wanted not in OTHERS or of_run not in OTHERS:
        return form_in(wanted, form, inputs, data, profile)
    from aap_hw.prune.quantised import quantised_of

    form = form_of(quantised_of(network, data, anew=is_retrained or record.get("made_up_inputs", False)), ())
    if wanted == INT8_HALF and profile is not None:
        return beside_half(form, inputs.zeros(), target_of(profile))
    return form


def form_in(
    precision: NetworkPrecision, form: Form, inputs: Inputs, data: Samples, profile: DeviceProfile | None
) -> Form:
    """A network, given as it is, in a supported precision: if another one, it is in float, and int8 measures ranges."""
    if precision == form.precision:
        return form
    if precision == HALF and profile is not None:
        return in_half(form.reference, inputs, target_of(profile))
    return in_int8(form.reference, inputs.names, calibration_of(data, inputs, CALIBRATION_IMAGES))


def unpruned_form(network: PrunedNetwork, data: Samples, form: Form) -> Form:
    """What a run's network was cut from, to be timed beside a form of it."""
    inputs, module = network.origin.inputs, network.origin.skeleton()
    if form.precision == HALF:
        return in_half_for_timing(module, inputs)
    planned: NetworkPrecision = network.record.get("precision", FP32)
    if planned in MIXTURES and unpruned_in(planned) == HALF and form.quantisation is not None:
        return in_half_for_timing(module, inputs)
    if form.quantisation is None or planned in MIXTURES:
        return form_of(module, inputs.names)
    floats = network.record.get("quantisation", {}).get("floats", ())
    if form.pixels is not None:
        whole = in_int8(module, inputs.names, calibration_of(data, inputs, 1), floats)
        return taking_pixels(whole, inputs, form.pixels)
    return in_int8_for_timing(module, inputs, floats)


def supported(asked: str | None, own: NetworkPrecision, profile: DeviceProfile | None) -> NetworkPrecision:
    """The precision that is asked for, by default a network's own; it is for a device, or an export if there is none.

    Raises
    ------
    UserError : the network cannot be deployed or exported in it. Only a plan of both puts half precision beside int8.
    """
    known, done = (EXPORTED_PRECISIONS, "exported") if profile is None else (NETWORK_PRECISIONS, "deployed")
    precision = asked or own
    for each in (*known, INT8_HALF) if profile is not None and own == INT8_HALF else known:
        if each == precision:
            if profile is not None:
                require_precision(each, target_of(profile), profile.name)
            return each
    instead = f"give --precision {', '.join(known[:-1])} or {known[-1]}"
    if precision == INT8_HALF and profile is not None:
        raise UserError(
            f"only a run that was pruned with --precision mixed:int8,half is deployed in int8,half; {instead}"
        )
    raise UserError(f"a network in {precision} cannot be {done}; {instead}")
