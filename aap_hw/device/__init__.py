"""Devices: their profiles, how they are reached, and how a function is timed on them."""

from aap_hw.device.profile import DeviceProfile, load_profile, profile_names

__all__ = ["DeviceProfile", "load_profile", "profile_names"]
