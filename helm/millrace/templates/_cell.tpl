{{/* The pod of a cell: dict of root, role (leader or agent), cell (index, or nil where one template serves all cells),
     hosts (the cell's pods after the leader, or empty), subdomain (of their headless Service). */}}
{{- define "millrace.cellPod" -}}
{{- $root := .root -}}
{{- $v := .root.Values -}}
{{- $cells := $v.cells -}}
{{- $cuda := eq $v.device.backend "cuda" -}}
{{- $readOnly := ternary (not $cuda) $cells.readOnlyRootFilesystem (kindIs "invalid" $cells.readOnlyRootFilesystem) -}}
{{- $secrets := ternary (list "cell" "nodeAgent") (list "cell") (gt (int $cells.nodes) 1) -}}
metadata:
  labels:
    {{- include "millrace.selector" $root | nindent 4 }}
    app.kubernetes.io/component: cell
    millrace/role: {{ .role | quote }}
    {{- if not (kindIs "invalid" .cell) }}
    millrace/cell: {{ .cell | quote }}
    {{- end }}
    {{- with $cells.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- include "millrace.checksums" (list $root (include "millrace.cellConfig" $root)) | nindent 4 }}
    {{- with $cells.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "millrace.podHead" $root | nindent 2 }}
  terminationGracePeriodSeconds: {{ int $cells.terminationGracePeriodSeconds }}
  {{- if $cells.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- if gt (int $cells.nodes) 1 }}
  {{- /* Open MPI calls nodes by their short names, which are the pods' names. */}}
  dnsConfig:
    searches:
      - {{ .subdomain }}.{{ $root.Release.Namespace }}.svc.{{ $v.clusterDomain }}
  {{- end }}
  {{- include "millrace.placement" (list $root $cells) | nindent 2 }}
  {{- include "millrace.cellAffinity" . | nindent 2 }}
  {{- if $v.model.check.enabled }}
  initContainers:
    {{- include "millrace.modelCheck" (list $root "cell") | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .role | quote }}
      {{- include "millrace.container" $root | nindent 6 }}
      args:
        - {{ ternary "cell" "node-agent" (eq .role "leader") | quote }}
        - --config
        - /etc/millrace/config/cell.yaml
        {{- if .hosts }}
        - --set
        - {{ printf "cell.hosts=%s" (toJson .hosts) | quote }}
        {{- end }}
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- with $cells.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if eq .role "agent" }}
      ports:
        - name: agent
          containerPort: {{ int $cells.agentPort }}
          protocol: TCP
      readinessProbe:
        tcpSocket:
          port: agent
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        tcpSocket:
          port: agent
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      {{- else }}
      ports:
        - name: health
          containerPort: {{ int $cells.healthPort }}
          protocol: TCP
      {{- /* The supervisor's own limit, deadlines.load_ms, comes first: it knows more, and starts the ranks again by itself. */}}
      startupProbe:
        httpGet:
          path: /health/started
          port: health
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ add 1 (div (add 60 (include "millrace.startupSeconds" $root | int64)) 5) }}
      readinessProbe:
        httpGet:
          path: /health/ready
          port: health
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet:
          path: /health/live
          port: health
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      lifecycle:
        {{- include "millrace.drainHook" (list $root $cells.healthPort 0) | nindent 8 }}
      {{- end }}
      resources:
        {{- include "millrace.cellResources" $root | nindent 8 }}
      securityContext:
        {{- include "millrace.containerSecurity" (list $root $readOnly (ternary (list "IPC_LOCK") nil $cells.rdma.enabled)) | nindent 8 }}
      volumeMounts:
        - name: shm
          mountPath: /dev/shm
        {{- include "millrace.mounts" (list $root $secrets) | nindent 8 }}
  volumes:
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $cells.shm.sizeLimit | quote }}
    {{- include "millrace.volumes" (list $root (printf "%s-cell" (include "millrace.fullname" $root)) $secrets) | nindent 4 }}
{{- end -}}

{{- define "millrace.cellResources" -}}
{{- $extra := dict -}}
{{- if eq .Values.device.backend "cuda" -}}
{{- $_ := set $extra .Values.device.resource (include "millrace.devicesPerNode" . | int64) -}}
{{- end -}}
{{- if .Values.cells.rdma.enabled -}}
{{- $_ := set $extra .Values.cells.rdma.resource (int64 .Values.cells.rdma.count) -}}
{{- end -}}
{{- $requests := merge (dict) $extra (.Values.cells.resources.requests | default dict) -}}
{{- $limits := merge (dict) $extra (.Values.cells.resources.limits | default dict) -}}
{{- with $requests }}
requests:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $limits }}
limits:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The values' rules, and what onePerNode and topologyKey add to them. */}}
{{- define "millrace.cellAffinity" -}}
{{- $cells := .root.Values.cells -}}
{{- $affinity := toJson $cells.affinity | fromJson -}}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $labels := merge (dict "app.kubernetes.io/component" "cell") (include "millrace.selector" .root | fromYaml) -}}
{{- $add := dict -}}
{{- if and $cells.topologyKey (not (kindIs "invalid" .cell)) (gt (int $cells.nodes) 1) -}}
{{- $own := merge (dict "millrace/cell" (toString .cell)) $labels -}}
{{- $_ := set $add "podAffinity" (dict "topologyKey" $cells.topologyKey "labelSelector" (dict "matchLabels" $own)) -}}
{{- end -}}
{{- if $cells.onePerNode -}}
{{- $_ := set $add "podAntiAffinity" (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels)) -}}
{{- end -}}
{{- range $kind, $term := $add -}}
{{- $rules := get $affinity $kind | default dict -}}
{{- $_ := set $rules $required (append (get $rules $required | default list) $term) -}}
{{- $_ := set $affinity $kind $rules -}}
{{- end -}}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
