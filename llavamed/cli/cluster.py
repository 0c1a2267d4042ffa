"""`llavamed cluster`: run curricula on Kubernetes, watch them, and examine a cluster."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llavamed.cli.options import ConfigFile, Overrides, console, find_config, print_line
from llavamed.config.sources import PLACES

if TYPE_CHECKING:
    from llavamed.cluster.client import Cluster
    from llavamed.cluster.doctor import Finding
    from llavamed.cluster.kinds import Object
    from llavamed.cluster.rayjob import Submission

app = typer.Typer(help="Run on Kubernetes, and find out what is wrong.", no_args_is_help=True)
logger = logging.getLogger(__name__)

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: that of the kubeconfig's context.")
]
Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig; default: current.")
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Name of a job, as `list` shows it.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a job or a service, as `list` shows it.")
]


def _connect(namespace: str | None, context: str | None) -> "Cluster":
    from llavamed.cluster.client import Cluster

    return Cluster(namespace, context)


@app.command()
def submit(
    overrides: Overrides = None,
    config: ConfigFile = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="End another attempt that holds the run.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the job; default: the run's.")] = None,
    queue: Annotated[str | None, typer.Option(help="Kueue's local queue.")] = None,
    on_cluster: Annotated[
        bool, typer.Option("--on-cluster", help="Run on the release's standing cluster.")
    ] = False,
    release: Annotated[
        str | None,
        typer.Option(help="Release to take image and groups from; default: the only one."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="File with a RayJob or RayCluster to take both from instead."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the manifest and submit nothing.")
    ] = False,
    gpu: Annotated[str, typer.Option(help="Ray's name of the GPU, for the plan.")] = "A100",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Check and plan a config, then run it as a RayJob on a cluster of its own."""
    from llavamed.cluster.kinds import PART_OF, RAY_CLUSTER, RAY_JOB, Named, name_of
    from llavamed.cluster.rayjob import Submission, choose_release, make_job, make_job_on, to_yaml
    from llavamed.cluster.snapshot import read_template
    from llavamed.config.load import load_config

    file = find_config(config)
    given = tuple(overrides or ())
    run = load_config(file, list(given))
    text = Path(file).read_text(encoding="utf-8")
    submission = Submission(run, text, given, take_over=take_over, name=name, queue=queue)
    _warn_of_local_places(submission)
    make = make_job_on if on_cluster else make_job
    if dry_run and template is not None:
        sys.stdout.write(to_yaml(make(submission, read_template(template))))
        return
    cluster = _connect(namespace, context)
    if template is None:
        clusters = cluster.find_all(RAY_CLUSTER, selector=PART_OF)
        source = choose_release(clusters, release, cluster.namespace)
    else:
        source = read_template(template)
    job = make(submission, source)
    if dry_run:
        sys.stdout.write(to_yaml(job))
        return
    _plan(submission, gpu)
    made = Named(name=name_of(cluster.create(RAY_JOB, job)), options=cluster.options)
    watching = f"`llavamed cluster status {made.target} --watch`"
    print_line(f"{made.name}: is submitted; {watching} shows how far it is")


def _warn_of_local_places(submission: "Submission") -> None:
    config = submission.config
    if "://" not in config.storage:
        logger.warning(
            "storage=%s: is a folder of the cluster, so `cluster status` cannot read the progress "
            "from here; use an object store such as s3://",
            config.storage,
        )
    for name, dataset in config.data.datasets.items():
        for key, value in dataset.read:
            if key in PLACES and value and "://" not in value:
                logger.warning(
                    "data.datasets.%s.read.%s=%s: is looked for in the pods of the cluster, not on "
                    "this machine; mount it there (ray.claims), or use an object store",
                    *(name, key, value),
                )


def _plan(submission: "Submission", gpu: str) -> None:
    """Print what the run will cost, if the packages for planning are installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        print_line("plan: is skipped; it needs `pip install 'llavamed[train]'`")
        return
    from llavamed.cli.tables import show_plan
    from llavamed.errors import LlavaMedError
    from llavamed.run.plan import plan_run

    try:
        show_plan(plan_run(submission.config, accelerator=gpu))
    except LlavaMedError as error:  # its data may be out of reach from here
        print_line(f"plan: is skipped: {error}")


@app.command("list")
def list_jobs(namespace: Namespace = None, context: Context = None) -> None:
    """List the jobs of a namespace, newest first, and its model services."""
    from rich.table import Table

    from llavamed.cluster.kinds import NAMESPACE, PART_OF, RAY_JOB, RAY_SERVICE
    from llavamed.cluster.service import read_service
    from llavamed.cluster.status import read_job
    from llavamed.errors import ClusterError, NotFoundError, UnreachableError

    cluster = _connect(namespace, context)
    jobs = [read_job(job, cluster.options) for job in cluster.find_all(RAY_JOB, selector=PART_OF)]
    try:
        found = cluster.find_all(RAY_SERVICE, selector=PART_OF)
        services = [read_service(each, cluster.options) for each in found]
    except UnreachableError:
        raise
    except ClusterError as error:  # who may see jobs need not see services
        services = []
        logger.warning("services are not listed: %s", error)
    if not (jobs or services):
        try:
            cluster.get(NAMESPACE, cluster.namespace)
        except (NotFoundError, UnreachableError):
            raise
        except ClusterError as error:  # who may see jobs need not see namespaces
            logger.debug("it is not known whether the namespace exists: %s", error)
        print_line(f"no jobs and no services in namespace {cluster.namespace}")
        return
    table = Table("job", "run", "state", "since")
    for job in sorted(jobs, key=lambda each: each.created, reverse=True):
        table.add_row(job.name, job.run, job.shown_state, f"{job.created:%Y-%m-%d %H:%M}")
    if jobs:
        console.print(table)
    for service in services:
        more = f"`llavamed cluster status {service.target}` shows more"
        print_line(f"service {service.name}: {service.state}; {more}")


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Repeat until the job has ended, or the service accepts requests."
        ),
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two updates.")] = 5.0,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show how far a job is: stage, step, loss, speed, time left, GPUs and cost.

    For a service, show whether it accepts requests, its model, and the state of its replicas.
    It exits with 1 when the job or the service has failed.
    """
    from llavamed.cluster.kinds import RAY_JOB, RAY_SERVICE
    from llavamed.errors import UnreachableError

    cluster = _connect(namespace, context)
    shown: list[tuple[str, str]] = []
    while True:
        try:
            found = cluster.get_any((RAY_JOB, RAY_SERVICE), name)
        except UnreachableError as error:
            if not watch:
                raise
            logger.warning("%s; trying again", error)
            time.sleep(seconds)
            continue
        lines, is_over, has_failed = _look_at(found, cluster.options)
        if lines != shown:
            for label, text in lines:
                print_line(f"{label:<9}{text}")
            if watch and not is_over:
                print_line("")
        shown = lines
        if not watch or is_over:
            raise typer.Exit(1 if has_failed else 0)
        time.sleep(seconds)


def _look_at(found: "Object", options: str) -> tuple[list[tuple[str, str]], bool, bool]:
    """Return what is known of a job or a service, whether it is done, and whether it has failed."""
    from llavamed.cluster.kinds import RAY_SERVICE
    from llavamed.cluster.service import describe_service, read_service
    from llavamed.cluster.status import ENDED, describe, now_utc, read_job, read_progress

    if found["kind"] == RAY_SERVICE.name:
        service = read_service(found, options)
        is_done = service.is_ready and not service.next_cluster
        return describe_service(service), is_done or bool(service.failures), bool(service.failures)
    job = read_job(found, options)
    lines = describe(job, read_progress(job), now_utc())
    return lines, job.state in ENDED, job.state == "failed"


@app.command()
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two updates.")] = 3.0,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print the log of a job's driver, or of all replicas of a service.

    A lost connection is made again.
    """
    from llavamed.cluster.logs import follow as follow_log

    cluster = _connect(namespace, context)
    for text in follow_log(
        cluster, name, follows=follow, seconds=seconds, on_problem=logger.warning
    ):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command()
def stop(
    job: JobName,
    after_checkpoint: Annotated[
        bool,
        typer.Option("--after-checkpoint", help="Ask for a checkpoint first, and wait for it."),
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two updates.")] = 3.0,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Stop a running job, and say what is lost; its run goes on from its last checkpoint."""
    from llavamed.cluster.status import kept_until_deleted
    from llavamed.cluster.stop import describe_loss, wait_for_checkpoint
    from llavamed.cluster.stop import stop as stop_job

    cluster = _connect(namespace, context)
    if after_checkpoint:
        print_line(f"{job}: is asked for a checkpoint, which is waited for")
        wait_for_checkpoint(cluster, job, seconds=seconds)
    state, found = stop_job(cluster, job)
    watching = f"`llavamed cluster status {state.target}`"
    print_line(f"{job}: is asked to stop; {watching} shows when it has")
    print_line(f"{job}: {describe_loss(found)}")
    if state.keeps_cluster:
        print_line(f"{job}: its cluster {kept_until_deleted(state)}")


@app.command()
def delete(
    name: Name,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Delete it even while it runs, or if it belongs to a release."
        ),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Delete a job or a service, and its cluster. Everything that a run has stored stays."""
    from llavamed.cluster.kinds import RAY_JOB, RAY_SERVICE
    from llavamed.cluster.service import check_deletable
    from llavamed.cluster.status import read_job
    from llavamed.errors import ClusterError

    cluster = _connect(namespace, context)
    found = cluster.get_any((RAY_JOB, RAY_SERVICE), name)
    if found["kind"] == RAY_SERVICE.name:
        if not force:
            check_deletable(found)
        cluster.delete(RAY_SERVICE, name)
    else:
        job = read_job(found, cluster.options)
        if job.state == "running" and not force:
            raise ClusterError(
                f"RayJob={name}: is running; stop it first with `llavamed cluster stop "
                f"{job.target}`, or add --force, which costs the steps since its last checkpoint"
            )
        cluster.delete(RAY_JOB, name)
    print_line(f"{name}: is being deleted, and its name is free once its pods have ended")


def _show_finding(finding: "Finding") -> None:
    print_line(f"{finding.level:<8} {finding.check:<14} {finding.text}")


@app.command()
def doctor(
    offline: Annotated[
        list[Path] | None,
        typer.Option(help="Examine manifests in this file instead of a cluster; repeatable."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Start a pod of each group that tries storage and MLflow."),
    ] = False,
    storage: Annotated[
        str | None, typer.Option(help="Folder in which each probe writes and deletes a file.")
    ] = None,
    probe_seconds: Annotated[
        float, typer.Option(min=1, help="Seconds that a probe may take.")
    ] = 600.0,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Examine a cluster: one line per check, and what to do about each problem.

    It exits with 1 when something stops runs.
    """
    from llavamed.cluster.doctor import examine, exit_code
    from llavamed.cluster.snapshot import read_manifests, take_snapshot

    if offline:
        snapshot = read_manifests(offline)
    else:
        cluster = _connect(namespace, context)
        print_line(f"Kubernetes {cluster.version()}, namespace {cluster.namespace}")
        snapshot = take_snapshot(cluster)
    findings = examine(snapshot)
    for finding in findings:
        _show_finding(finding)
    if probe and not offline:
        from llavamed.cluster.probes import probe_groups

        for finding in probe_groups(cluster, snapshot, storage, seconds=probe_seconds):
            _show_finding(finding)
            findings.append(finding)
    raise typer.Exit(exit_code(findings))
