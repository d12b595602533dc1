{{/* Rules between values. The schema has the rules of single values; what config/cluster_rules.cc demands of fields that
     come from .Values.config is repeated here, so that a bad release fails at render time and not in its pods. */}}
{{- define "millrace.validate" -}}
{{- include "millrace.validateNames" . -}}
{{- include "millrace.validateSize" . -}}
{{- include "millrace.validateResources" . -}}
{{- include "millrace.validateTimes" . -}}
{{- include "millrace.validateScaling" . -}}
{{- include "millrace.validateSources" . -}}
{{- include "millrace.validateConfig" . -}}
{{- end -}}

{{- define "millrace.validateNames" -}}
{{- $full := include "millrace.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,34}[a-z0-9])?$" $full) -}}
{{- fail (printf "fullnameOverride: the objects' prefix %q must begin with a letter and have at most 36 small letters, digits and dashes" $full) -}}
{{- end -}}
{{- if eq .Values.gateway.port .Values.gateway.cellPort -}}
{{- fail "gateway.cellPort: must differ from gateway.port" -}}
{{- end -}}
{{- if eq .Values.cells.healthPort .Values.cells.agentPort -}}
{{- fail "cells.healthPort: must differ from cells.agentPort" -}}
{{- end -}}
{{- range $component := list "gateway" "cells" -}}
{{- $seen := list "POD_NAME" -}}
{{- range (index $.Values $component).env -}}
{{- if has .name $seen -}}
{{- fail (printf "%s.env: %s is given twice, or is the chart's own" $component .name) -}}
{{- end -}}
{{- $seen = append $seen .name -}}
{{- end -}}
{{- range $key, $_ := (index $.Values $component).podLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $key) (hasPrefix "millrace/" $key) (hasPrefix "helm.sh/" $key) -}}
{{- fail (printf "%s.podLabels: %s belongs to the chart" $component $key) -}}
{{- end -}}
{{- end -}}
{{- range $key, $_ := (index $.Values $component).podAnnotations -}}
{{- if hasPrefix "checksum/" $key -}}
{{- fail (printf "%s.podAnnotations: %s belongs to the chart" $component $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "millrace.validateSize" -}}
{{- $cells := .Values.cells -}}
{{- $needed := mul (int $cells.stages) (int $cells.lanes) | int -}}
{{- $world := mul (int $cells.nodes) (int $cells.workersPerNode) | int -}}
{{- if ne $needed $world -}}
{{- fail (printf "cells.workersPerNode: %d pods x %d workers = %d, but cells.stages x cells.lanes = %d x %d = %d" (int $cells.nodes) (int $cells.workersPerNode) $world (int $cells.stages) (int $cells.lanes) $needed) -}}
{{- end -}}
{{- $each := dig "device" "ranks_per_device" 1 .Values.config | int -}}
{{- if and (eq .Values.device.backend "cuda") (mod (int $cells.workersPerNode) $each) -}}
{{- fail (printf "config.device.ranks_per_device: %d does not divide cells.workersPerNode, %d" $each (int $cells.workersPerNode)) -}}
{{- end -}}
{{- if eq .Values.mode "standalone" -}}
{{- if ne (int $cells.nodes) 1 -}}
{{- fail "cells.nodes: mode standalone has one pod" -}}
{{- end -}}
{{- if or .Values.gateway.autoscaling.enabled $cells.autoscaling.enabled -}}
{{- fail "gateway.autoscaling, cells.autoscaling: mode standalone has one pod" -}}
{{- end -}}
{{- if or $cells.hostNetwork $cells.rdma.enabled -}}
{{- fail "cells.hostNetwork, cells.rdma: mode standalone has one pod" -}}
{{- end -}}
{{- if and (eq .Values.device.backend "cuda") (gt (int $cells.replicas) 1) -}}
{{- fail "cells.replicas: mode standalone takes one cell's devices; use mode cluster for more" -}}
{{- end -}}
{{- else if .Values.standalone.embedded -}}
{{- fail "standalone.embedded: needs mode standalone" -}}
{{- end -}}
{{- if and (gt (int $cells.nodes) 1) (not (include "millrace.secretName" (list . "nodeAgent"))) -}}
{{- fail "secrets.nodeAgent: a cell over several pods needs it: kubectl create secret generic millrace-node-agent --from-literal=secret=$(openssl rand -hex 32), and existingSecret: millrace-node-agent" -}}
{{- end -}}
{{- if eq .Values.device.backend "cpu" -}}
{{- $cache := .Values.config.cache | default dict -}}
{{- if and (dig "limits" "memory" "" $cells.resources) (not $cache.kv_tokens) (not $cache.memory_bytes) -}}
{{- fail "cells.resources.limits.memory: give config.cache.kv_tokens or config.cache.memory_bytes too; else the cache is sized by the node's memory and the pod is killed" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The API server refuses pods, not what makes them: a Deployment with such resources would wait for its pods without a word. */}}
{{- define "millrace.validateResources" -}}
{{- range $component := list "gateway" "cells" -}}
{{- $resources := (index $.Values $component).resources -}}
{{- range $name, $request := $resources.requests -}}
{{- $limit := dig $name "" ($resources.limits | default dict) -}}
{{- $wanted := include "millrace.quantity" $request | float64 -}}
{{- $allowed := include "millrace.quantity" $limit | float64 -}}
{{- if and (hasPrefix "hugepages-" $name) (ne $allowed $wanted) -}}
{{- fail (printf "%s.resources.limits: %s must be what %s.resources.requests has, %v" $component $name $component $request) -}}
{{- else if and $limit (lt $allowed $wanted) -}}
{{- fail (printf "%s.resources.limits.%s: %v is less than %s.resources.requests.%s, %v; raise the limit, or lower the request" $component $name $limit $component $name $request) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "millrace.validateTimes" -}}
{{- $drain := .Values.gateway.drain -}}
{{- $drainSeconds := include "millrace.drainSeconds" . | int -}}
{{- $needed := include "millrace.hookSeconds" (list . (int $drain.preStopSeconds)) | int -}}
{{- if le (int $drain.terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "gateway.drain.terminationGracePeriodSeconds: %d must be more than %d: preStopSeconds %d + config.deadlines.drain_ms %d s + 10, or streams are cut" (int $drain.terminationGracePeriodSeconds) $needed (int $drain.preStopSeconds) $drainSeconds) -}}
{{- end -}}
{{- $cellGrace := int .Values.cells.terminationGracePeriodSeconds -}}
{{- $needed = include "millrace.hookSeconds" (list . 0) | int -}}
{{- if and (eq .Values.mode "cluster") (le $cellGrace $needed) -}}
{{- fail (printf "cells.terminationGracePeriodSeconds: %d must be more than %d: config.deadlines.drain_ms %d s + 10, or what runs is cut" $cellGrace $needed $drainSeconds) -}}
{{- end -}}
{{- if gt (include "millrace.startupSeconds" . | int64) 86400 -}}
{{- fail "startup.readGiBPerSecond: the start-up budget must be at most a day" -}}
{{- end -}}
{{- end -}}

{{- define "millrace.validateScaling" -}}
{{- $gateway := .Values.gateway.autoscaling -}}
{{- if $gateway.enabled -}}
{{- if gt (int $gateway.minReplicas) (int $gateway.maxReplicas) -}}
{{- fail "gateway.autoscaling.minReplicas: must be at most maxReplicas" -}}
{{- end -}}
{{- if not (dig "requests" "cpu" "" .Values.gateway.resources) -}}
{{- fail "gateway.autoscaling: a share of the requested CPU needs gateway.resources.requests.cpu" -}}
{{- end -}}
{{- end -}}
{{- $cells := .Values.cells.autoscaling -}}
{{- if $cells.enabled -}}
{{- if gt (int $cells.minReplicas) (int $cells.maxReplicas) -}}
{{- fail "cells.autoscaling.minReplicas: must be at most maxReplicas" -}}
{{- end -}}
{{- if and (gt (int .Values.cells.nodes) 1) (ne (include "millrace.backend" .) "lws") -}}
{{- fail "cells.autoscaling: cells of several pods can be scaled as a LeaderWorkerSet only; set cells.backend to lws" -}}
{{- end -}}
{{- $least := ternary (int $gateway.minReplicas) (int .Values.gateway.replicas) $gateway.enabled -}}
{{- $room := mul $least (dig "gateway" "max_queued_requests" 256 .Values.config | int) | int -}}
{{- $asks := mul (sub (int $cells.maxReplicas) 1) (int $cells.queuedPerCell) | int -}}
{{- if le $room $asks -}}
{{- fail (printf "cells.autoscaling.queuedPerCell: the last cell is asked for when more than %d sequences wait, but %d gateway(s) hold %d at most (config.gateway.max_queued_requests)" $asks $least $room) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "millrace.validateSources" -}}
{{- $source := .Values.model.source -}}
{{- $field := get (dict "pvc" "claimName" "hostPath" "hostPath" "imageVolume" "imageReference") $source.kind -}}
{{- if and $field (not (get $source $field)) -}}
{{- fail (printf "model.source.%s: kind %s needs it" $field $source.kind) -}}
{{- end -}}
{{- if and $field (not (hasPrefix (printf "%s/" (trimSuffix "/" $source.mountPath)) (printf "%s/" .Values.model.path))) -}}
{{- fail (printf "model.path: %s is not below model.source.mountPath, %s" .Values.model.path $source.mountPath) -}}
{{- end -}}
{{- if and (eq $source.kind "imageVolume") (not (semverCompare ">=1.31.0-0" .Capabilities.KubeVersion.Version)) -}}
{{- fail "model.source.kind: imageVolume needs Kubernetes 1.31" -}}
{{- end -}}
{{- if and (eq $source.kind "imageVolume") $source.subPath (not (semverCompare ">=1.33.0-0" .Capabilities.KubeVersion.Version)) -}}
{{- fail "model.source.subPath: of an imageVolume needs Kubernetes 1.33" -}}
{{- end -}}
{{- $m := .Values.monitoring -}}
{{- if and $m.podMonitor.enabled $m.serviceMonitor.enabled -}}
{{- fail "monitoring.podMonitor: with serviceMonitor every series would count twice; choose one" -}}
{{- end -}}
{{- if dig "gateway" "guard_metrics" false .Values.config -}}
{{- if not (include "millrace.apiKeysName" .) -}}
{{- fail "config.gateway.guard_metrics: needs auth" -}}
{{- end -}}
{{- if or $m.podMonitor.enabled (include "millrace.switch" (list . $m.serviceMonitor.enabled "monitoring.coreos.com/v1")) -}}
{{- fail "config.gateway.guard_metrics: the monitors show no key; set monitoring.serviceMonitor.enabled to false and scrape by other means" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: name a Gateway" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker.name) -}}
{{- fail "inferencePool.endpointPicker.name: name its Service" -}}
{{- end -}}
{{- end -}}

{{- define "millrace.validateConfig" -}}
{{- $c := .Values.config -}}
{{- $steps := dig "scheduler" "max_step_tokens" 512 $c | int64 -}}
{{- if gt (dig "scheduler" "prefill_chunk_tokens" 256 $c | int64) $steps -}}
{{- fail (printf "config.scheduler.prefill_chunk_tokens: must be at most max_step_tokens, %d" $steps) -}}
{{- end -}}
{{- if gt (dig "cache" "max_sequences" 32 $c | int64) $steps -}}
{{- fail (printf "config.scheduler.max_step_tokens: %d must be at least config.cache.max_sequences" $steps) -}}
{{- end -}}
{{- $block := dig "cache" "block_tokens" 32 $c | int64 -}}
{{- if mod $block 16 -}}
{{- fail "config.cache.block_tokens: must be a multiple of 16" -}}
{{- end -}}
{{- $kv := dig "cache" "kv_tokens" 0 $c | int64 -}}
{{- if and $kv (lt $kv (mul 2 $block)) -}}
{{- fail "config.cache.kv_tokens: must be 0 or at least two blocks" -}}
{{- end -}}
{{- if and $kv (gt (dig "cache" "max_context_tokens" 0 $c | int64) $kv) -}}
{{- fail "config.cache.max_context_tokens: must be at most kv_tokens" -}}
{{- end -}}
{{- $type := dig "cache" "kv_dtype" "bf16" $c -}}
{{- if or (and (eq $type "fp8") (eq .Values.device.backend "cpu")) (and (eq $type "f32") (eq .Values.device.backend "cuda")) -}}
{{- fail (printf "config.cache.kv_dtype: %s is not for device.backend %s" $type .Values.device.backend) -}}
{{- end -}}
{{- if gt (dig "deadlines" "collective_ms" 60000 $c | int64) (dig "deadlines" "step_ms" 60000 $c | int64) -}}
{{- fail "config.deadlines.collective_ms: must be at most step_ms" -}}
{{- end -}}
{{- if lt (dig "deadlines" "heartbeat_limit_ms" 3000 $c | int64) (mul 2 (dig "deadlines" "heartbeat_interval_ms" 1000 $c | int64)) -}}
{{- fail "config.deadlines.heartbeat_limit_ms: must be at least twice heartbeat_interval_ms" -}}
{{- end -}}
{{- if lt (dig "cell" "restart_backoff_max_ms" 30000 $c | int64) (dig "cell" "restart_backoff_min_ms" 500 $c | int64) -}}
{{- fail "config.cell.restart_backoff_max_ms: must be at least restart_backoff_min_ms" -}}
{{- end -}}
{{- end -}}
