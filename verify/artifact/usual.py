"""A bundle's model by the names that the table of components has: its second names taken off."""

from __future__ import annotations

from dataclasses import replace

from convert.components import INPUT_ALIASES, OUTPUT_ALIASES
from verify.mil import Block, Op, Program


def by_usual_names(program: Program, component: str) -> Program:
    """The program without second names, where it has them and nothing else for them.

    An input gets its usual name back; an output that is given again loses the `identity` that gives
    it, which has to be the last op. Whatever is otherwise stays, to be found different.
    """
    for usual, alias in INPUT_ALIASES.get(component, {}).items():
        if alias in program.main.inputs and usual not in program.main.inputs:
            program = _renamed(program, alias, usual)
    for usual, alias in OUTPUT_ALIASES.get(component, {}).items():
        if {usual, alias} <= {*program.main.outputs}:
            program = _without(program, usual, alias)
    return program


def _renamed(program: Program, alias: str, usual: str) -> Program:
    def op(op: Op) -> Op:
        inputs = {
            name: [usual if isinstance(v, str) and v == alias else v for v in values]
            for name, values in op.inputs.items()
        }
        return replace(op, inputs=inputs)

    main = program.main
    inputs = {usual if name == alias else name: type_ for name, type_ in main.inputs.items()}
    return replace(
        program,
        inputs=[replace(f, name=usual) if f.name == alias else f for f in program.inputs],
        main=Block(inputs, [op(o) for o in main.ops], main.outputs),
    )


def _without(program: Program, usual: str, alias: str) -> Program:
    main, last = program.main, program.main.ops[-1]
    types = {name: type_ for op in main.ops for name, type_ in op.outputs}
    is_copy = (
        last.type == "identity"
        and last.inputs == {"x": [usual]}
        and last.outputs == [(alias, types.get(usual))]
        and not last.attributes
    )
    if not is_copy or main.outputs[-1] != alias:
        return program
    return replace(
        program,
        outputs=[f for f in program.outputs if f.name != alias],
        main=Block(main.inputs, main.ops[:-1], main.outputs[:-1]),
    )
