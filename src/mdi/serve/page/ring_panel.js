// The ring beside the chat: drawn, in words, and as a table.

import { KeyedChildren, setText } from "./dom.js";
import { explain } from "./explain.js";
import { RingDrawing } from "./ring_drawing.js";
import { NodeCard, NodeTable } from "./ring_nodes.js";
import { SampleRow } from "./ring_samples.js";
import { aged, Losses, ringState, stateOfRing } from "./ring_state.js";
import { count, rate } from "./units.js";

const TICK_MS = 700; // longer than between two snapshots of a ring at work

export class RingPanel {
    #root;
    #announcer;
    #drawing;
    #cards;
    #table;
    #samples;
    #losses = new Losses();
    #timer = null;

    /** `root` is the section with the parts that are filled here, by their `data-ring`. */
    constructor(root, announcer) {
        this.#root = root;
        this.#announcer = announcer;
        this.#drawing = new RingDrawing(this.#part("drawing"));
        this.#cards = new KeyedChildren(
            this.#part("nodes"),
            (node) => node.name,
            (node) => new NodeCard(node),
        );
        this.#table = new NodeTable(this.#part("table"));
        this.#samples = new KeyedChildren(
            this.#part("samples"),
            (sample) => `${sample.id} ${sample.index}`,
            () => new SampleRow(),
        );
    }

    show(snapshot) {
        const { lost, back } = this.#losses.update(snapshot.nodes);
        for (const name of lost) this.#announcer.say(`${name} of the ring is lost.`);
        for (const name of back) this.#announcer.say(`${name} of the ring is back.`);
        this.#root.classList.remove("stale", "unknown");
        this.#part("problem").hidden = true;
        this.#draw(snapshot);
        this.#drawLater(snapshot, performance.now());
    }

    /** Time passes while nothing else changes. */
    #drawLater(snapshot, receivedMs) {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => {
            this.#draw(aged(snapshot, (performance.now() - receivedMs) / 1000));
            this.#drawLater(snapshot, receivedMs);
        }, TICK_MS);
    }

    /** There is no news of the ring; what is shown is what was known last. */
    fail(error, hadKey) {
        clearTimeout(this.#timer);
        this.#root.classList.add("stale");
        this.#part("problem").hidden = false;
        setText(this.#part("problem"), explain(error, hadKey));
    }

    #draw(snapshot) {
        const { nodes, samples } = snapshot;
        this.#drawing.update(snapshot);
        this.#cards.update(nodes);
        this.#table.update(nodes);
        this.#samples.update(samples);
        this.#part("no-samples").hidden = samples.length > 0;
        for (const pill of document.querySelectorAll(".ring-state")) {
            pill.dataset.state = stateOfRing(snapshot);
            setText(pill.querySelector(".words"), ringState(snapshot));
        }
        setText(this.#part("facts"), factsOf(snapshot));
    }

    #part(name) {
        return this.#root.querySelector(`[data-ring="${name}"]`);
    }
}

function factsOf({ model, n_layers: nLayers, nodes, recoveries, version, ...speed }) {
    const parts = [model, `${count(nLayers, "layer")} on ${count(nodes.length, "node")}`];
    if (recoveries > 0) parts.push(recoveries === 1 ? "recovered once" : `recovered ${recoveries} times`);
    if (speed.predicted_tokens_per_s !== null) {
        const [predicted, reached] = [speed.predicted_tokens_per_s, speed.reached_tokens_per_s].map(rate);
        parts.push(`predicted ${predicted}, reached ${reached} tokens/s`);
    }
    return [...parts, `MDI-LLM ${version}`].join(" · ");
}
