{{/* Prefix of all names. Pods of a cell are called <prefix>-cell-63-node-63 at most, plus the 11 characters that a
     controller's revision label adds; 36 leaves room within 63. */}}
{{- define "millrace.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: millrace
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{- define "millrace.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- with .Values.image.digest -}}
{{ $.Values.image.repository }}@{{ . }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "millrace.serviceAccount" -}}
{{- default (ternary (include "millrace.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* lws or statefulset. */}}
{{- define "millrace.backend" -}}
{{- if ne .Values.cells.backend "auto" -}}
{{- .Values.cells.backend -}}
{{- else if .Capabilities.APIVersions.Has "leaderworkerset.x-k8s.io/v1" -}}
lws
{{- else -}}
statefulset
{{- end -}}
{{- end -}}

{{/* Three-state switch: list of the value and the API that it follows. Not empty: on. */}}
{{- define "millrace.switch" -}}
{{- $value := index . 1 -}}
{{- if kindIs "bool" $value -}}
{{- if $value -}}on{{- end -}}
{{- else if (index . 0).Capabilities.APIVersions.Has (index . 2) -}}
on
{{- end -}}
{{- end -}}

{{/* The name of the Secret that holds an own secret (cell or nodeAgent), or nothing. */}}
{{- define "millrace.secretName" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $secret := index $root.Values.secrets $kind -}}
{{- if $secret.existingSecret -}}
{{- $secret.existingSecret -}}
{{- else if $secret.value -}}
{{- include "millrace.fullname" $root }}-{{ kebabcase $kind }}-secret
{{- end -}}
{{- end -}}

{{- define "millrace.apiKeysName" -}}
{{- if .Values.auth.existingSecret -}}
{{- .Values.auth.existingSecret -}}
{{- else if .Values.auth.keys -}}
{{- include "millrace.fullname" . }}-api-keys
{{- end -}}
{{- end -}}

{{/* Seconds in which a cell must have started. */}}
{{- define "millrace.startupSeconds" -}}
{{- $read := divf .Values.model.sizeGiB .Values.startup.readGiBPerSecond -}}
{{- addf .Values.startup.baseSeconds $read | ceil | int64 -}}
{{- end -}}

{{/* A quantity of Kubernetes as a number, in the forms that the schema takes. */}}
{{- define "millrace.quantity" -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $decimal := dict "" 1 "m" 0.001 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- $factor := get (merge $decimal (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776)) $unit -}}
{{- mulf (trimSuffix $unit $text | float64) $factor -}}
{{- end -}}

{{/* A CPU quantity in thousandths of a core; nothing when it is not given. */}}
{{- define "millrace.milliCores" -}}
{{- if . -}}
{{- mulf (include "millrace.quantity" . | float64) 1000 | int64 -}}
{{- end -}}
{{- end -}}

{{/* Devices that a pod of a cell takes. */}}
{{- define "millrace.devicesPerNode" -}}
{{- $each := dig "device" "ranks_per_device" 1 .Values.config | int -}}
{{- div (int .Values.cells.workersPerNode) $each -}}
{{- end -}}
