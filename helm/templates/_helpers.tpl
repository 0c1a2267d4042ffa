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

{{- define "llavamed.selectorLabels" -}}
app.kubernetes.io/name: llavamed
app.kubernetes.io/instance: {{ include "llavamed.name" . }}
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

{{/* What every pod of the chart has: the restricted Pod Security Standard, as uid 1000. */}}
{{- define "llavamed.podBase" -}}
serviceAccountName: {{ include "llavamed.name" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
# Other services of the namespace must not become settings, as MLFLOW_PORT would.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "llavamed.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end }}

{{/* A number of CPUs may be an integer or text such as 1500m; a large float64 would print as 1e+06. */}}
{{- define "llavamed.cpu" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ int . }}{{ end -}}
{{- end }}

{{/* Requests equal limits: Ray plans with the limits, and the pod is never evicted first. */}}
{{- define "llavamed.resources" -}}
{{- $amounts := dict "cpu" (include "llavamed.cpu" .cpu) "memory" .memory -}}
{{- with .gpus }}{{ $_ := set $amounts "nvidia.com/gpu" (toString (int .)) }}{{ end -}}
{{- dict "requests" $amounts "limits" $amounts | toYaml -}}
{{- end }}

{{/* Object storage, as the AWS tools read it, for Ray and MLflow alike. */}}
{{- define "llavamed.storageEnv" -}}
{{- with .Values.storage.endpointUrl -}}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end -}}
{{- end }}

{{- define "llavamed.storageEnvFrom" -}}
{{- with .Values.storage.existingSecret -}}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end -}}
{{- end }}
