"""Values that rules of templates/_validate.tpl tie to others: for each, what the others must be for a sample to be right."""

AGENT = {"nodeAgent": {"value": "s" * 32}}
QUEUE = {"gateway": {"max_queued_requests": 1000000}}


def _grace(milliseconds: int) -> dict:
    seconds = min(90000, milliseconds // 1000 + 20)
    return {"gateway": {"drain": {"terminationGracePeriodSeconds": seconds}}, "cells": {"terminationGracePeriodSeconds": seconds}}


def _cache(**fields) -> dict:
    return {"config": {"cache": fields, "scheduler": {"max_step_tokens": 65536}}}


def _resources(component: str, other: str):
    """Limits that are no less than requests: the same."""
    return lambda v: {component: {"resources": {other: v}}, "config": {"cache": {"memory_bytes": "1GiB"}}}


CONTEXTS = {
    "fullnameOverride": lambda v: {},
    "nameOverride": lambda v: {},
    "mode": lambda v: {},
    "standalone.embedded": lambda v: {"mode": "standalone"},
    "device.backend": lambda v: {},
    "cells.stages": lambda v: {"cells": {"workersPerNode": v}},
    "cells.lanes": lambda v: {"cells": {"workersPerNode": v}},
    "cells.workersPerNode": lambda v: {"cells": {"lanes": v}},
    "cells.nodes": lambda v: {"cells": {"stages": v}, "secrets": AGENT},
    "cells.replicas": lambda v: {},
    "cells.resources.limits": _resources("cells", "requests"),
    "gateway.port": lambda v: {},
    "gateway.cellPort": lambda v: {},
    "gateway.replicas": lambda v: {},
    "gateway.resources.requests": _resources("gateway", "limits"),
    "gateway.resources.limits": _resources("gateway", "requests"),
    "cells.resources.requests": _resources("cells", "limits"),
    "gateway.drain.preStopSeconds": lambda v: {"gateway": {"drain": {"terminationGracePeriodSeconds": v + 71}}},
    "gateway.drain.terminationGracePeriodSeconds": lambda v: {"gateway": {"drain": {"preStopSeconds": 0}}, "config": {"deadlines": {
        "drain_ms": 0}}} if v > 10 else None,
    "gateway.autoscaling.enabled": lambda v: {},
    "gateway.autoscaling.minReplicas": lambda v: {"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 64}}},
    "gateway.autoscaling.maxReplicas": lambda v: {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 1}}},
    "gateway.autoscaling.targetCPUUtilizationPercentage": lambda v: {"gateway": {"autoscaling": {"enabled": True}}},
    "cells.agentPort": lambda v: {},
    "cells.healthPort": lambda v: {},
    "cells.terminationGracePeriodSeconds": lambda v: {"config": {"deadlines": {"drain_ms": 0}}} if v > 10 else None,
    "cells.autoscaling.enabled": lambda v: {},
    "cells.autoscaling.minReplicas": lambda v: {"cells": {"autoscaling": {"enabled": True, "maxReplicas": 64}}, "config": QUEUE},
    "cells.autoscaling.maxReplicas": lambda v: {"cells": {"autoscaling": {"enabled": True, "minReplicas": 1}}, "config": QUEUE},
    "cells.autoscaling.queuedPerCell": lambda v: {"cells": {"autoscaling": {"enabled": True}}, "config": QUEUE},
    "cells.autoscaling.prometheusAddress": lambda v: {"cells": {"autoscaling": {"enabled": True}}},
    "cells.autoscaling.pollingIntervalSeconds": lambda v: {"cells": {"autoscaling": {"enabled": True}}},
    "cells.autoscaling.cooldownSeconds": lambda v: {"cells": {"autoscaling": {"enabled": True}}},
    "startup.baseSeconds": lambda v: {"startup": {"readGiBPerSecond": 1000}, "model": {"sizeGiB": 0.0001}} if v < 86400 else None,
    "startup.readGiBPerSecond": lambda v: {},
    "model.sizeGiB": lambda v: {},
    "model.path": lambda v: {},
    "model.source.kind": lambda v: {"model": {"path": "/models/m", "source": {
        "claimName": "c", "hostPath": "/h", "imageReference": "i"}}},
    "model.source.mountPath": lambda v: {"model": {"path": v + "/m", "source": {"kind": "pvc", "claimName": "c"}}},
    "model.source.claimName": lambda v: {"model": {"path": "/models/m", "source": {"kind": "pvc" if v else "image"}}},
    "model.source.hostPath": lambda v: {"model": {"path": "/models/m", "source": {"kind": "hostPath" if v else "image"}}},
    "model.source.imageReference": lambda v: {"model": {"path": "/models/m", "source": {"kind": "imageVolume" if v else "image"}}},
    "model.source.imagePullPolicy": lambda v: {"model": {"path": "/models/m", "source": {"kind": "imageVolume", "imageReference": "i"}}},
    "model.source.subPath": lambda v: {"model": {"path": "/models/m", "source": {"kind": "hostPath", "hostPath": "/h"}}},
    "monitoring.serviceMonitor.enabled": lambda v: {},
    "monitoring.podMonitor.enabled": lambda v: {},
    "httpRoute.enabled": lambda v: {"httpRoute": {"parentRefs": [{"name": "g"}]}},
    "httpRoute.parentRefs": lambda v: {"httpRoute": {"enabled": bool(v)}},
    "httpRoute.hostnames": lambda v: {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}},
    "httpRoute.timeout": lambda v: {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}},
    "inferencePool.enabled": lambda v: {"inferencePool": {"endpointPicker": {"name": "p"}}},
    "inferencePool.endpointPicker.name": lambda v: {"inferencePool": {"enabled": bool(v)}},
    "inferencePool.endpointPicker.port": lambda v: {"inferencePool": {"enabled": True, "endpointPicker": {"name": "p"}}},
    "inferencePool.endpointPicker.failureMode": lambda v: {"inferencePool": {"enabled": True, "endpointPicker": {"name": "p"}}},
    "config.gateway.guard_metrics": lambda v: {"auth": {"keys": ["k"]}, "monitoring": {"serviceMonitor": {"enabled": False}}},
    "config.gateway.max_queued_requests": lambda v: {},
    "config.device.ranks_per_device": lambda v: {"device": {"backend": "cuda"}, "cells": {"workersPerNode": 64 if v != 32 else 32,
                                                                                         "lanes": 64 if v != 32 else 32}}
    if 64 % v == 0 else None,
    "config.cache.block_tokens": lambda v: _cache() if v % 16 == 0 else None,
    "config.cache.kv_tokens": lambda v: _cache() if v == 0 or v >= 64 else None,
    "config.cache.kv_dtype": lambda v: {"device": {"backend": "cuda" if v == "fp8" else "cpu"}},
    "config.cache.max_sequences": lambda v: _cache(),
    "config.cache.max_context_tokens": lambda v: {},
    "config.scheduler.max_step_tokens": lambda v: {"config": {"scheduler": {"prefill_chunk_tokens": 1}, "cache": {"max_sequences": 1}}},
    "config.scheduler.prefill_chunk_tokens": lambda v: {"config": {"scheduler": {"max_step_tokens": 65536}}},
    "config.deadlines.step_ms": lambda v: {"config": {"deadlines": {"collective_ms": 1}}},
    "config.deadlines.collective_ms": lambda v: {"config": {"deadlines": {"step_ms": 86400000}}},
    "config.deadlines.heartbeat_interval_ms": lambda v: {"config": {"deadlines": {"heartbeat_limit_ms": 2 * v}}}
    if v <= 43200000 else None,
    "config.deadlines.heartbeat_limit_ms": lambda v: {"config": {"deadlines": {"heartbeat_interval_ms": 10}}},
    "config.deadlines.drain_ms": lambda v: _grace(v),
    "config.cell.restart_backoff_min_ms": lambda v: {"config": {"cell": {"restart_backoff_max_ms": 86400000}}},
    "config.cell.restart_backoff_max_ms": lambda v: {"config": {"cell": {"restart_backoff_min_ms": 1}}},
}


def refusals() -> list[tuple[str, dict]]:
    """(what the message must begin with, values): one for each rule."""
    standalone = {"mode": "standalone"}
    return [
        ("fullnameOverride: the objects' prefix", {"nameOverride": "x", "fullnameOverride": "", "release": "1st"}),
        ("gateway.cellPort:", {"gateway": {"cellPort": 8000}}),
        ("cells.healthPort:", {"cells": {"healthPort": 7700}}),
        ("gateway.env: POD_NAME", {"gateway": {"env": [{"name": "POD_NAME", "value": "x"}]}}),
        ("cells.env: A is given twice", {"cells": {"env": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]}}),
        ("cells.podLabels: app.kubernetes.io/name", {"cells": {"podLabels": {"app.kubernetes.io/name": "x"}}}),
        ("gateway.podLabels: millrace/role", {"gateway": {"podLabels": {"millrace/role": "x"}}}),
        ("gateway.podAnnotations: checksum/config", {"gateway": {"podAnnotations": {"checksum/config": "x"}}}),
        ("cells.workersPerNode: 2 pods x 4 workers = 8, but cells.stages x cells.lanes = 2 x 2 = 4",
         {"cells": {"nodes": 2, "workersPerNode": 4, "stages": 2, "lanes": 2}, "secrets": AGENT}),
        ("config.device.ranks_per_device: 2 does not divide", {"device": {"backend": "cuda"}, "config": {"device": {"ranks_per_device": 2}}}),
        ("cells.nodes: mode standalone", standalone | {"cells": {"nodes": 2, "stages": 2}}),
        ("gateway.autoscaling, cells.autoscaling: mode standalone", standalone | {"gateway": {"autoscaling": {"enabled": True}}}),
        ("gateway.autoscaling, cells.autoscaling: mode standalone", standalone | {"cells": {"autoscaling": {"enabled": True}}}),
        ("cells.hostNetwork, cells.rdma: mode standalone", standalone | {"cells": {"hostNetwork": True}}),
        ("cells.hostNetwork, cells.rdma: mode standalone", standalone | {"cells": {"rdma": {"enabled": True}}}),
        ("cells.replicas: mode standalone", standalone | {"device": {"backend": "cuda"}, "cells": {"replicas": 2}}),
        ("standalone.embedded: needs mode standalone", {"standalone": {"embedded": True}}),
        ("secrets.nodeAgent: a cell over several pods", {"cells": {"nodes": 2, "stages": 2}}),
        ("cells.resources.limits.memory:", {"cells": {"resources": {"limits": {"memory": "2Gi"}}}}),
        ("gateway.resources.limits.cpu: 999m is less than gateway.resources.requests.cpu, 1;",
         {"gateway": {"resources": {"limits": {"cpu": "999m"}}}}),
        ("gateway.resources.limits.memory: 500M is less than gateway.resources.requests.memory, 512Mi;",
         {"gateway": {"resources": {"limits": {"memory": "500M"}}}}),
        ("cells.resources.limits.cpu: 1.999 is less than cells.resources.requests.cpu, 2;", {"cells": {"resources": {"limits": {"cpu": "1.999"}}}}),
        ("cells.resources.limits.memory: 2147483647 is less than cells.resources.requests.memory, 2Gi;",
         {"cells": {"resources": {"limits": {"memory": "2147483647"}}}, "config": {"cache": {"kv_tokens": 8192}}}),
        ("cells.resources.limits: hugepages-2Mi must be what cells.resources.requests has, 64Mi",
         {"cells": {"resources": {"requests": {"hugepages-2Mi": "64Mi"}}}}),
        ("gateway.drain.terminationGracePeriodSeconds: 90 must be more than 101",
         {"config": {"deadlines": {"drain_ms": 85500}}}),
        ("gateway.drain.terminationGracePeriodSeconds: 75 must be more than 75", {"gateway": {"drain": {"terminationGracePeriodSeconds": 75}}}),
        ("cells.terminationGracePeriodSeconds: 70 must be more than 70", {"cells": {"terminationGracePeriodSeconds": 70}}),
        ("startup.readGiBPerSecond:", {"model": {"sizeGiB": 10000}, "startup": {"readGiBPerSecond": 0.1}}),
        ("gateway.autoscaling.minReplicas:", {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 9}}}),
        ("gateway.autoscaling: a share", {"gateway": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}}),
        ("cells.autoscaling.minReplicas:", {"cells": {"autoscaling": {"enabled": True, "minReplicas": 9}}}),
        ("cells.autoscaling: cells of several pods", {"cells": {"backend": "statefulset", "nodes": 2, "stages": 2, "autoscaling": {"enabled": True}},
                                                      "secrets": AGENT}),
        ("cells.autoscaling.queuedPerCell: the last cell is asked for when more than 600 sequences wait, but 2 gateway(s) hold 512",
         {"cells": {"autoscaling": {"enabled": True, "queuedPerCell": 200}}}),
        ("model.source.claimName: kind pvc", {"model": {"path": "/models/m", "source": {"kind": "pvc"}}}),
        ("model.source.hostPath: kind hostPath", {"model": {"path": "/models/m", "source": {"kind": "hostPath"}}}),
        ("model.source.imageReference: kind imageVolume", {"model": {"path": "/models/m", "source": {"kind": "imageVolume"}}}),
        ("model.path: /modelsx/m is not below", {"model": {"path": "/modelsx/m", "source": {"kind": "pvc", "claimName": "c"}}}),
        ("model.source.kind: imageVolume needs", {"kube": "1.30", "model": {"path": "/models/m", "source": {
            "kind": "imageVolume", "imageReference": "i"}}}),
        ("model.source.subPath: of an imageVolume", {"kube": "1.32", "model": {"path": "/models/m", "source": {
            "kind": "imageVolume", "imageReference": "i", "subPath": "a"}}}),
        ("monitoring.podMonitor: with serviceMonitor", {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}),
        ("config.gateway.guard_metrics: needs auth", {"config": {"gateway": {"guard_metrics": True}}}),
        ("config.gateway.guard_metrics: the monitors", {"auth": {"keys": ["k"]}, "config": {"gateway": {"guard_metrics": True}},
                                                        "monitoring": {"podMonitor": {"enabled": True}}}),
        ("httpRoute.parentRefs:", {"httpRoute": {"enabled": True}}),
        ("inferencePool.endpointPicker.name:", {"inferencePool": {"enabled": True}}),
        ("config.scheduler.prefill_chunk_tokens:", {"config": {"scheduler": {"prefill_chunk_tokens": 513}}}),
        ("config.scheduler.max_step_tokens: 512 must be at least", {"config": {"cache": {"max_sequences": 513}}}),
        ("config.cache.block_tokens:", {"config": {"cache": {"block_tokens": 24}}}),
        ("config.cache.kv_tokens:", {"config": {"cache": {"kv_tokens": 63}}}),
        ("config.cache.max_context_tokens:", {"config": {"cache": {"kv_tokens": 100, "max_context_tokens": 101}}}),
        ("config.cache.kv_dtype: fp8", {"config": {"cache": {"kv_dtype": "fp8"}}}),
        ("config.cache.kv_dtype: f32", {"device": {"backend": "cuda"}, "config": {"cache": {"kv_dtype": "f32"}}}),
        ("config.deadlines.collective_ms:", {"config": {"deadlines": {"step_ms": 59999}}}),
        ("config.deadlines.heartbeat_limit_ms:", {"config": {"deadlines": {"heartbeat_limit_ms": 1999}}}),
        ("config.cell.restart_backoff_max_ms:", {"config": {"cell": {"restart_backoff_max_ms": 499}}}),
    ]
