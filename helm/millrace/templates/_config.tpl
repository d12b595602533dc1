{{/* Millrace's configuration, as config/cluster_config.h loads it. Fields that the chart decides come from its values;
     .Values.config has the others. */}}

{{/* A field's value as YAML. Numbers become integers again: values arrive as floats, and 1e+06 is none. Texts are escaped as Go's %q does:
     JSON leaves characters as they are that YAML takes for line breaks (U+0085) or refuses. */}}
{{- define "millrace.configValue" -}}
{{- if kindIs "string" . -}}
{{- quote . -}}
{{- else if kindIs "slice" . -}}
[{{ range $i, $each := . }}{{ if $i }}, {{ end }}{{ include "millrace.configValue" $each }}{{ end }}]
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/* What gateways and cells have in common. */}}
{{- define "millrace.commonConfig" -}}
model:
  path: {{ .Values.model.path | quote }}
  served_name: {{ .Values.model.servedName | quote }}
device:
  backend: {{ .Values.device.backend | quote }}
deadlines:
  load_ms: {{ mul 1000 (include "millrace.startupSeconds" . | int64) }}
{{- with include "millrace.secretName" (list . "cell") }}
cell:
  secret_file: /etc/millrace/secrets/cell/secret
{{- end }}
{{- end -}}

{{- define "millrace.gridConfig" -}}
grid:
  stages: {{ int .Values.cells.stages }}
  lanes: {{ int .Values.cells.lanes }}
{{- $cpu := dig "limits" "cpu" "" .Values.cells.resources | default (dig "requests" "cpu" "" .Values.cells.resources) -}}
{{- $workers := mul (int .Values.cells.workersPerNode) (ternary (int .Values.cells.replicas) 1 (eq .Values.mode "standalone")) -}}
{{- with include "millrace.milliCores" $cpu }}
  threads_per_rank: {{ max 1 (min 1024 (div (int64 .) (mul 1000 $workers))) }}
{{- end }}
{{- end -}}

{{- define "millrace.httpConfig" -}}
gateway:
  host: "0.0.0.0"
  port: {{ int .Values.gateway.port }}
  {{- if eq .Values.mode "cluster" }}
  cell_host: "0.0.0.0"
  {{- end }}
  cell_port: {{ int .Values.gateway.cellPort }}
  {{- if include "millrace.apiKeysName" . }}
  api_keys_file: /etc/millrace/secrets/api-keys/api-keys
  {{- end }}
logging:
  format: json
{{- end -}}

{{- define "millrace.gatewayConfig" -}}
{{- $parts := list (include "millrace.commonConfig" .) (include "millrace.httpConfig" .) -}}
{{- include "millrace.merged" (list . $parts) -}}
{{- end -}}

{{- define "millrace.standaloneConfig" -}}
{{- $cells := dict "grid" (dict "cells" (int64 .Values.cells.replicas) "embedded" .Values.standalone.embedded) -}}
{{- $parts := list (include "millrace.commonConfig" .) (include "millrace.gridConfig" .) (include "millrace.httpConfig" .) (toYaml $cells) -}}
{{- include "millrace.merged" (list . $parts) -}}
{{- end -}}

{{/* Of leaders and agents alike. The name of the gateways ends in a dot: it is looked up again and again, and would be tried in
     the pod's search domains first. */}}
{{- define "millrace.cellConfig" -}}
{{- $full := include "millrace.fullname" . -}}
{{- $gateways := printf "%s-gateway-cells.%s.svc.%s.:%d" $full .Release.Namespace .Values.clusterDomain (int .Values.gateway.cellPort) -}}
{{- $cell := dict "gateways" (list $gateways) "health_host" "0.0.0.0" "health_port" (int64 .Values.cells.healthPort) -}}
{{- $own := dict "cell" $cell "logging" (dict "format" "json") -}}
{{- if gt (int .Values.cells.nodes) 1 -}}
{{- $_ := set $own "node_agent" (dict "port" (int64 .Values.cells.agentPort) "secret_file" "/etc/millrace/secrets/node-agent/secret") -}}
{{- end -}}
{{- $parts := list (include "millrace.commonConfig" .) (include "millrace.gridConfig" .) (toYaml $own) -}}
{{- include "millrace.merged" (list . $parts "gateway") -}}
{{- end -}}

{{/* list of root, parts, and sections that are left out: a cell does not read how gateways answer, and need not restart
     when that changes. Later parts win, .Values.config last, as a copy: merging dicts would write into .Values. */}}
{{- define "millrace.merged" -}}
{{- $config := dict -}}
{{- $omitted := slice . 2 -}}
{{- $parts := list -}}
{{- range index . 1 -}}
{{- $parts = append $parts (fromYaml .) -}}
{{- end -}}
{{- range append $parts (toJson (index . 0).Values.config | fromJson) -}}
{{- range $section, $fields := . -}}
{{- if has $section $omitted }}{{ continue }}{{ end -}}
{{- $out := get $config $section | default dict -}}
{{- range $name, $value := $fields -}}
{{- $_ := set $out $name $value -}}
{{- end -}}
{{- $_ := set $config $section $out -}}
{{- end -}}
{{- end -}}
{{- range $section, $fields := $config }}
{{ $section }}:
{{- range $name, $value := $fields }}
  {{ $name }}: {{ include "millrace.configValue" $value }}
{{- end }}
{{- end }}
{{- end -}}
