"""Commands of `llavamed evaluate` for decisions on a model: judge, gate, card."""

from typing import Annotated

import typer

from llavamed.cli.options import ConfigFile, Overrides, load_run, print_line

_QUESTIONS = (
    "JSON lines of {question_id, image, text, gpt4_answer, fig_caption, in_text_mention, domain, "
    "type}, at any URI, or of {id, image, question, reference, caption, mentions, domain, type}."
)


def judge_answers(
    questions: Annotated[str, typer.Argument(help=_QUESTIONS)],
    answers: Annotated[
        str,
        typer.Argument(
            help="Output of `evaluate answer`, or JSON lines of {question_id, text}, at any URI."
        ),
    ],
    endpoint: Annotated[
        str, typer.Option(help="YAML file of the judge: url, model, limits, prices, max_cost.")
    ],
    output: Annotated[str, typer.Option(help="Folder for the verdicts, at any URI.")],
    cache: Annotated[
        str | None, typer.Option(help="Folder of raw answers; default: `cache` in the output.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of a verdict.")
    ] = 512,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what it would take, and send no request.")
    ] = False,
) -> None:
    """Let a language model judge answers to questions about figures against reference answers."""
    from llavamed.cli.tables import show_judgement
    from llavamed.config.endpoint import Endpoint
    from llavamed.config.load import load_section
    from llavamed.evaluate.chat import read_chat
    from llavamed.evaluate.judge import judge, requests_of
    from llavamed.evaluate.judgement import write_judgement
    from llavamed.llm.cost import estimate as estimate_cost
    from llavamed.storage.lease import hold_lease
    from llavamed.storage.location import locate

    judge_at = load_section("endpoint", endpoint, Endpoint)
    items = read_chat(locate(questions), locate(answers))
    if estimate:
        needed = estimate_cost(requests_of(items, max_tokens), judge_at)
        price = "" if needed.cost is None else f", at most {needed.cost:.2f} in all"
        print_line(
            f"{needed.num_requests:,} requests, about {needed.prompt_tokens:,} tokens of prompts "
            f"and at most {needed.max_completion_tokens:,} of verdicts{price}"
        )
        return
    folder = locate(output)
    with hold_lease(folder, hint="set --output to another folder") as lease:
        judgement = judge(items, judge_at, cache or str(folder / "cache"), max_tokens)
        lease.check()
        found = write_judgement(folder, judgement, judge_at)
    show_judgement(found)
    print_line(f"Verdicts: {folder}")


def gate_model(
    policy: Annotated[str, typer.Option(help="YAML file of the rules.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    stage: Annotated[str | None, typer.Option(help="Default: the last one.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the registered model; default: the run's.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check only; the champion stays in any case.")
    ] = False,
) -> None:
    """Make a stage's model the champion in MLflow's registry if it meets a policy."""
    from llavamed.config.gate import GatePolicy
    from llavamed.config.load import load_section

    rules = load_section("policy", policy, GatePolicy)
    run = load_run(config, overrides)
    from llavamed.cli.tables import show_checks
    from llavamed.evaluate.gates import require
    from llavamed.run.gate import check_candidate, make_champion

    name = model or run.name
    checks, plan, tracker = check_candidate(run, stage, rules, name)
    show_checks(checks)
    if check:
        require(checks, name)
        return
    print_line(make_champion(checks, plan, tracker, rules, name))


def write_model_card(
    output: Annotated[str, typer.Argument(help="Folder to write, at any URI.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    stage: Annotated[str | None, typer.Option(help="Default: the last one.")] = None,
) -> None:
    """Write a model card, and a data card for each training set, from the records."""
    run = load_run(config, overrides)
    from llavamed.run.cards import write_cards
    from llavamed.storage.location import locate

    for name in write_cards(run, stage, locate(output)):
        print_line(str(locate(output) / name))
