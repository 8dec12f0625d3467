// What a snapshot of the ring means, in words.

import { count, layers, rate, seconds } from "./units.js";

/** A node as people see it: running, lost, or on its way to either. */
export function stateOf(node) {
    if (node.missing_s !== null || node.state === "missing") return "lost";
    return node.state === "running" ? "running" : "waiting";
}

/** Whether the others have taken over the layers of a node. */
export function isLeftOut(node) {
    return node.rank === null;
}

/** The state of a node in words. */
export function nodeState(node) {
    if (stateOf(node) === "lost") return `lost ${seconds(node.missing_s ?? 0)} ago`;
    return isLeftOut(node) ? `${node.state}, left out` : node.state;
}

/** The state of the ring in one word: as the server says, unless nodes are lost or left out. */
export function stateOfRing({ state, nodes }) {
    if (nodes.some((node) => stateOf(node) === "lost" && !isLeftOut(node))) return "lost";
    return state === "ready" && nodes.some(isLeftOut) ? "smaller" : state;
}

/** The same in words. */
export function ringState({ state, state_s: stateS, nodes }) {
    if (state !== "ready") return `${state} for ${seconds(stateS)}`;
    const nLeftOut = nodes.filter(isLeftOut).length;
    return nLeftOut === 0 ? "ready" : `ready, ${count(nLeftOut, "node")} left out`;
}

/** The drawing in one sentence. */
export function describe(snapshot) {
    const nodes = snapshot.nodes.map((node) => `${node.name} is ${nodeState(node)}, layers ${layers(node.layers)}`);
    const ring = `Ring of ${count(nodes.length, "node")}, ${snapshot.state}`;
    return `${ring}, ${rate(snapshot.tokens_per_s)} tokens per second: ${nodes.join("; ")}.`;
}

/** A snapshot as it would be some time later, as far as times go. */
export function aged(snapshot, passedS) {
    const later = (time) => (time === null ? null : time + passedS);
    return {
        ...snapshot,
        state_s: later(snapshot.state_s),
        nodes: snapshot.nodes.map((node) => ({ ...node, missing_s: later(node.missing_s) })),
        messages: snapshot.messages.map((message) => ({ ...message, age_s: later(message.age_s) })),
        samples: snapshot.samples.map((sample) => ({ ...sample, seconds: later(sample.seconds) })),
    };
}

/** Notices which nodes are lost and come back. One that is back loads its layers before it runs. */
export class Losses {
    #lost = new Set();

    /** The names of those that were lost, and that run again, since the last snapshot. */
    update(nodes) {
        const lost = nodes.filter((node) => stateOf(node) === "lost" && !this.#lost.has(node.name));
        const back = nodes.filter((node) => stateOf(node) === "running" && this.#lost.has(node.name));
        for (const { name } of lost) this.#lost.add(name);
        for (const { name } of back) this.#lost.delete(name);
        return { lost: lost.map((node) => node.name), back: back.map((node) => node.name) };
    }
}
