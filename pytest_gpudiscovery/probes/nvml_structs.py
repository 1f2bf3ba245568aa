"""NVML's structures and numbers (nvml.h of driver 580; nvidia-ml-py 13.615.71, pynvml.py), laid out as by C."""

from __future__ import annotations

import ctypes

NOT_FOUND = 6  # NVML_ERROR_NOT_FOUND
ERROR_UNCORRECTED = 1  # nvmlMemoryErrorType_t
COUNTER_VOLATILE = 0  # nvmlEccCounterType_t: since the driver was loaded
LOCATION_DEVICE_MEMORY = 2  # nvmlMemoryLocation_t
NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE as unsigned long long
FABRIC_INFO_V2 = 0x02000024  # nvmlGpuFabricInfo_v2: version 2 in the top byte, sizeof below


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t (68 bytes)."""

    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


class Memory(ctypes.Structure):
    """nvmlMemory_t, bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class ConfComputeState(ctypes.Structure):
    """nvmlConfComputeSystemState_t."""

    _fields_ = (
        ("environment", ctypes.c_uint),  # 0 unavailable, 1 simulation, 2 production
        ("cc_feature", ctypes.c_uint),  # 1: confidential computing is on
        ("dev_tools_mode", ctypes.c_uint),
    )


class FabricInfo(ctypes.Structure):
    """nvmlGpuFabricInfo_t, of drivers before 550."""

    _fields_ = (
        ("cluster_uuid", ctypes.c_ubyte * 16),
        ("status", ctypes.c_uint),  # nvmlReturn_t of the probe that the fabric manager answered
        ("clique_id", ctypes.c_uint),
        ("state", ctypes.c_ubyte),  # 0 not supported, 1 not started, 2 in progress, 3 completed
    )


class FabricInfoV2(ctypes.Structure):
    """nvmlGpuFabricInfo_v2_t; `version` must be FABRIC_INFO_V2."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("cluster_uuid", ctypes.c_ubyte * 16),
        ("status", ctypes.c_uint),
        ("clique_id", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
        ("health_mask", ctypes.c_uint),
    )


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t as functions of version 2 and 3 fill it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class ProcessInfoV1(ctypes.Structure):
    """nvmlProcessInfo_v1_t, of drivers before MIG."""

    _fields_ = (("pid", ctypes.c_uint), ("used_memory", ctypes.c_ulonglong))


class MigAttributes(ctypes.Structure):
    """nvmlDeviceAttributes_t of one MIG device."""

    _fields_ = (
        ("sm_count", ctypes.c_uint),
        ("shared_engines", ctypes.c_uint * 5),  # copy, decoder, encoder, JPEG, optical flow
        ("gpu_instance_slices", ctypes.c_uint),
        ("compute_instance_slices", ctypes.c_uint),
        ("memory_mib", ctypes.c_ulonglong),
    )
