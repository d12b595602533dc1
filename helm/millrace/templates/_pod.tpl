{{/* Parts of every pod. */}}

{{- define "millrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.security.runAsUser }}
runAsGroup: {{ int64 .Values.security.runAsGroup }}
fsGroup: {{ int64 .Values.security.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* list of root, whether the root file system is read-only, capabilities that are added. */}}
{{- define "millrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ index . 1 | toJson }}
capabilities:
  drop: [ALL]
  {{- with index . 2 }}
  add: {{ toJson . }}
  {{- end }}
{{- end -}}

{{- define "millrace.podHead" -}}
serviceAccountName: {{ include "millrace.serviceAccount" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "millrace.podSecurity" . | nindent 2 }}
{{- end -}}

{{- define "millrace.container" -}}
image: {{ include "millrace.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
command: [tini, --, millrace]  # process 1 reaps what mpirun leaves
{{- end -}}

{{/* Seconds that running requests have to finish. */}}
{{- define "millrace.drainSeconds" -}}
{{- divf (dig "deadlines" "drain_ms" 60000 .Values.config) 1000 | ceil | int -}}
{{- end -}}

{{/* list of root, and seconds for which new work is still taken: longest that the hook takes. _validate.tpl keeps grace periods above it. */}}
{{- define "millrace.hookSeconds" -}}
{{- add (index . 1) (include "millrace.drainSeconds" (index . 0) | int) 10 -}}
{{- end -}}

{{/* list of root, port, and seconds for which new work is still taken. Returns when all that runs has finished. */}}
{{- define "millrace.drainHook" -}}
{{- $pause := index . 2 | int -}}
preStop:
  exec:
    command:
      - millrace
      - drain
      - --url
      - http://127.0.0.1:{{ index . 1 | int }}
      - --pause-ms
      - {{ mul 1000 $pause | quote }}
      - --timeout-s
      - {{ include "millrace.hookSeconds" (list (index . 0) $pause) | quote }}
{{- end -}}

{{/* list of root and the component's values. */}}
{{- define "millrace.placement" -}}
{{- with (index . 1).nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 1).tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 1).priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with (index . 1).runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "millrace.modelVolume" -}}
{{- $source := .Values.model.source -}}
{{- if ne $source.kind "image" }}
- name: model
  {{- if eq $source.kind "pvc" }}
  persistentVolumeClaim:
    claimName: {{ $source.claimName | quote }}
    readOnly: true
  {{- else if eq $source.kind "hostPath" }}
  hostPath:
    path: {{ $source.hostPath | quote }}
    type: Directory
  {{- else }}
  image:
    reference: {{ $source.imageReference | quote }}
    pullPolicy: {{ $source.imagePullPolicy | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "millrace.modelMount" -}}
{{- $source := .Values.model.source -}}
{{- if ne $source.kind "image" }}
- name: model
  mountPath: {{ $source.mountPath | quote }}
  readOnly: true
  {{- with $source.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* list of root, name of the configuration's ConfigMap, and the secrets (cell, nodeAgent, apiKeys) that are mounted.
     Secrets are readable by the group fsGroup of this pod and by nobody else. */}}
{{- define "millrace.volumes" -}}
{{- $root := index . 0 -}}
- name: config
  configMap:
    name: {{ index . 1 | quote }}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- range $kind := index . 2 }}
{{- if eq $kind "apiKeys" }}
{{- with include "millrace.apiKeysName" $root }}
- name: api-keys
  secret:
    secretName: {{ . | quote }}
    defaultMode: 288  # 0440
    items:
      - key: {{ ternary $root.Values.auth.secretKey "api-keys" (ne $root.Values.auth.existingSecret "") | quote }}
        path: api-keys
{{- end }}
{{- else }}
{{- with include "millrace.secretName" (list $root $kind) }}
- name: {{ kebabcase $kind }}-secret
  secret:
    secretName: {{ . | quote }}
    defaultMode: 288  # 0440
    items:
      - key: {{ ternary (index $root.Values.secrets $kind).secretKey "secret" (ne (index $root.Values.secrets $kind).existingSecret "") | quote }}
        path: secret
{{- end }}
{{- end }}
{{- end }}
{{- include "millrace.modelVolume" $root }}
{{- end -}}

{{- define "millrace.mounts" -}}
{{- $root := index . 0 -}}
- name: config
  mountPath: /etc/millrace/config
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- range $kind := index . 1 }}
{{- if eq $kind "apiKeys" }}
{{- if include "millrace.apiKeysName" $root }}
- name: api-keys
  mountPath: /etc/millrace/secrets/api-keys
  readOnly: true
{{- end }}
{{- else if include "millrace.secretName" (list $root $kind) }}
- name: {{ kebabcase $kind }}-secret
  mountPath: /etc/millrace/secrets/{{ ternary "node-agent" "cell" (eq $kind "nodeAgent") }}
  readOnly: true
{{- end }}
{{- end }}
{{- include "millrace.modelMount" $root }}
{{- end -}}

{{/* The step before ranks: reads the model's headers and compares every tensor with the model's shape, on a CPU, since
     the device plugin gives devices to one container only. KV type and cache belong to the device plan and are not
     checked here. */}}
{{- define "millrace.modelCheck" -}}
- name: check-model
  {{- include "millrace.container" (index . 0) | nindent 2 }}
  args:
    # Gateways read the tokenizer alone; whoever reads weights compares all contents, if the model has a SHA256SUMS.
    - {{ ternary "plan" "verify" (eq (index . 1) "gateway") | quote }}
    - --config
    - /etc/millrace/config/{{ index . 1 }}.yaml
    {{- if eq (index . 0).Values.device.backend "cuda" }}
    - --set
    - device.backend=cpu
    - --set
    - cache.kv_dtype=bf16
    - --set
    - cache.kv_tokens=0
    - --set
    - cache.memory_bytes=1GiB
    - --set
    - cache.max_context_tokens=0
    {{- end }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 2Gi}
  securityContext:
    {{- include "millrace.containerSecurity" (list (index . 0) true nil) | nindent 4 }}
  volumeMounts:
    {{- include "millrace.mounts" (list (index . 0) (list)) | nindent 4 }}
{{- end -}}

{{/* A change of configuration or of secrets in the release rolls the pods. */}}
{{- define "millrace.checksums" -}}
checksum/config: {{ index . 1 | sha256sum | quote }}
{{- $root := index . 0 -}}
{{- $secrets := list $root.Values.secrets.cell.value $root.Values.secrets.nodeAgent.value $root.Values.auth.keys -}}
{{- if or $root.Values.secrets.cell.value $root.Values.secrets.nodeAgent.value $root.Values.auth.keys }}
checksum/secrets: {{ toJson $secrets | sha256sum | quote }}
{{- end }}
{{- end -}}
