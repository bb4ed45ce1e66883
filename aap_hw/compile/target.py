"""The devices that code can be compiled for, for code outside of the compiler's rooms."""

from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, GpuTarget, device_target, host_options

__all__ = ["CpuTarget", "DeviceTarget", "GpuTarget", "device_target", "host_options"]
