"""Find the kind of a model by its name."""

from llavamed.config.engine import Precision
from llavamed.errors import ConfigError
from llavamed.evaluate.candidate import Candidate
from llavamed.evaluate.own_model import export_candidate
from llavamed.evaluate.transformers_model import transformers_candidate
from llavamed.model.export import check_no_export_below
from llavamed.storage.location import locate
from llavamed.tracking.registered import find_export


def find_candidate(
    model: str, *, template: str | None, precision: Precision, batch_size: int
) -> Candidate:
    """Return an export of ours, or another model that transformers loads, as a candidate.

    Args:
        model: A folder, its URI, a registered model of MLflow, or a name on the hub.
        template: Name of a template of ours, for a model without a chat template.
        batch_size: Number of questions answered at once.

    Raises:
        ConfigError: It cannot be found or loaded, or an export is given another template.
        CheckpointError: It is an export of another version, or not the one that was registered, or
            the folder of a run or a stage.
        TrackingError: The registry does not answer, or has no such model.
    """
    if model.startswith("models:/"):
        model = str(find_export(model))  # the answers tell which model it was at this time
    try:
        found = export_candidate(
            model, precision=precision, attn_implementation="sdpa", batch_size=batch_size
        )
    except FileNotFoundError:
        check_no_export_below(locate(model))
        return transformers_candidate(
            model, template=template, precision=precision, batch_size=batch_size
        )
    if template not in (None, found.template_name):
        raise ConfigError(
            f"template={template}: the export {model} was trained with {found.template_name}; "
            "leave the template out"
        )
    return found
