{{/* What tells whether an upgrade changes the worker groups. */}}
{{- define "llavamed.groupsChecksum" -}}
{{- get (include "llavamed.clusterSpec" . | fromYaml) "workerGroupSpecs" | toJson | sha256sum -}}
{{- end }}

{{/* Whether others than Helm write into the worker groups: the autoscaler, or Kueue once it admits them. */}}
{{- define "llavamed.groupsAreShared" -}}
{{- if or .Values.ray.autoscaling.enabled .Values.job.queue }}true{{ end -}}
{{- end }}

{{/*
The specification with what others have written into the worker groups: the autoscaler the numbers of workers, and Kueue
the nodes. They are a list that has one owner as a whole: what the chart alone knows of it would take workers from a running
job, and Helm 4 refuses to overwrite it. So an upgrade leaves groups of another owner as they are if it does not change them,
and always the numbers of workers that the autoscaler has chosen.
*/}}
{{- define "llavamed.liveSpec" -}}
{{- $kind := ternary "RayJob" "RayCluster" .Values.job.enabled -}}
{{- $live := dict -}}
{{- if and (include "llavamed.groupsAreShared" .) .Release.IsUpgrade (.Capabilities.APIVersions.Has (printf "ray.io/v1/%s" $kind)) -}}
{{- $live = lookup "ray.io/v1" $kind .Release.Namespace (include "llavamed.name" .) -}}
{{- end -}}
{{- if $live -}}
{{- $groups := (ternary $live.spec.rayClusterSpec $live.spec .Values.job.enabled).workerGroupSpecs -}}
{{- $foreign := false -}}
{{- range $live.metadata.managedFields -}}
{{- if and (ne .manager "helm") (contains "f:workerGroupSpecs" (toJson .fieldsV1)) }}{{ $foreign = true }}{{ end -}}
{{- end -}}
{{- $spec := include "llavamed.clusterSpec" . | fromYaml -}}
{{- if and $foreign (eq (dig "metadata" "annotations" "llavamed/groups" "" $live) (include "llavamed.groupsChecksum" .)) -}}
{{- $_ := set $spec "workerGroupSpecs" $groups -}}
{{- else if .Values.ray.autoscaling.enabled -}}
{{- range $group := $spec.workerGroupSpecs -}}
{{- range $groups -}}
{{- if and (eq .groupName $group.groupName) (or .replicas .scaleStrategy) -}}
{{- $_ := merge $group (pick . "replicas" "scaleStrategy") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $spec -}}
{{- else -}}
{{- include "llavamed.clusterSpec" . -}}
{{- end -}}
{{- end }}
