{{/*
Environment variables, each name once, for Kubernetes refuses a second: the last one counts, so that what a user adds
replaces what the chart sets. Argument: their YAML.
*/}}
{{- define "llavamed.env" -}}
{{- $env := list -}}
{{- $names := list -}}
{{- range print . "\n" | fromYamlArray | reverse -}}
{{- if not (has .name $names) }}{{ $env = prepend $env . }}{{ end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- toYaml $env -}}
{{- end }}

{{/* Object storage, as the AWS tools read it, for Ray and MLflow alike. */}}
{{- define "llavamed.storageEnv" -}}
{{- with .Values.storage.endpointUrl -}}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
# Many servers other than AWS refuse the checksums that the AWS tools add to every request.
- name: AWS_REQUEST_CHECKSUM_CALCULATION
  value: when_required
- name: AWS_RESPONSE_CHECKSUM_VALIDATION
  value: when_required
{{- end -}}
{{- end }}

{{- define "llavamed.storageEnvFrom" -}}
{{- with .Values.storage.existingSecret -}}
envFrom:
  - secretRef:
      name: {{ . | quote }}
{{- end -}}
{{- end }}
