{{/*
Every name is the release's. It names the RayCluster, so it must satisfy KubeRay too, which would take 53
characters but shortens the names of the token's Secret and of the pods to 50.
*/}}
{{- define "llavamed.name" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "release name %q: KubeRay takes lower case letters, digits and '-', starting with a letter" .Release.Name) -}}
{{- else if gt (len .Release.Name) 50 -}}
{{- fail (printf "release name %q has %d characters: KubeRay keeps 50 of a cluster's name" .Release.Name (len .Release.Name)) -}}
{{- end -}}
{{- .Release.Name -}}
{{- end }}

{{/* A name with a suffix, short enough for the longer names that Kubernetes derives. Arguments: root, kind, end, most. */}}
{{- define "llavamed.shortName" -}}
{{- $name := include "llavamed.name" .root -}}
{{- $most := sub .most (len .end) -}}
{{- if gt (len $name) (int $most) -}}
{{- fail (printf "release name %q has %d characters: Kubernetes takes %d of a %s's name, and this one ends in %s; use %d at most" $name (len $name) .most .kind .end $most) -}}
{{- end -}}
{{- $name }}{{ .end -}}
{{- end }}

{{- define "llavamed.selectorLabels" -}}
app.kubernetes.io/name: llavamed
app.kubernetes.io/instance: {{ include "llavamed.name" . | quote }}
{{- end }}

{{/* What all Ray pods of the release share, whether KubeRay created them for a cluster or a job. */}}
{{- define "llavamed.raySelector" -}}
app.kubernetes.io/part-of: llavamed
app.kubernetes.io/instance: {{ include "llavamed.name" . | quote }}
{{- end }}

{{- define "llavamed.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "llavamed.selectorLabels" . }}
{{- end }}

{{- define "llavamed.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What every pod of the chart has, for the restricted Pod Security Standard. */}}
{{- define "llavamed.podBase" -}}
serviceAccountName: {{ .Values.serviceAccount.name | default (include "llavamed.name" .) | quote }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
# Other services of the namespace must not become settings, as MLFLOW_PORT would.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with int .Values.runAsUser }}
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* A container of the restricted standard. Argument: the capabilities to add, if any. */}}
{{- define "llavamed.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  {{- with . }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/*
Requests equal limits: Ray plans with the limits, and the pod is never evicted first. A number of CPUs is a
number or text such as 1500m.
*/}}
{{- define "llavamed.resources" -}}
{{- $amounts := dict "cpu" (toString .cpu) "memory" .memory -}}
{{- with .disk }}{{ $_ := set $amounts "ephemeral-storage" . }}{{ end -}}
{{- if .gpus }}{{ $_ := set $amounts .gpuResource (toString (int .gpus)) }}{{ end -}}
{{- range $name, $amount := .extraResources -}}
{{- $_ := set $amounts $name (ternary $amount (toString (int $amount)) (kindIs "string" $amount)) -}}
{{- end -}}
{{- dict "requests" $amounts "limits" $amounts | toYaml -}}
{{- end }}

{{/* The labels by which Prometheus and Grafana find an object, in addition to those of the chart. */}}
{{- define "llavamed.monitoringLabels" -}}
{{- merge (deepCopy .Values.monitoring.labels) (include "llavamed.labels" . | fromYaml) | toYaml -}}
{{- end }}
