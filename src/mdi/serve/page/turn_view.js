// One turn of the conversation: what was said, and what can be done with it.

import { copyButton } from "./clipboard.js";
import { button, element, setText } from "./dom.js";
import { MarkdownView } from "./markdown.js";

export class TurnView {
    #turn;
    #actions;
    #body = element("div", { className: "body" });
    #problem = element("p", { className: "problem" });
    #note = element("p", { className: "note" });
    #facts = element("span", { className: "facts" });
    #markdown = new MarkdownView(this.#body);
    #copy;
    #buttons;

    /** `actions` has `edit(turn, text)` and `retry(turn)`. */
    constructor(turn, actions) {
        this.#turn = turn;
        this.#actions = actions;
        const isUser = turn.role === "user";
        this.#copy = copyButton(() => turn.content);
        this.#buttons = isUser
            ? [button("Edit", "edit", () => this.#edit())]
            : [this.#copy, button("Retry", "retry", () => actions.retry(turn))];
        const foot = element("footer", {}, ...this.#buttons, this.#facts);
        const heading = element("h3", { className: "unseen", textContent: isUser ? "You" : "Answer" });
        this.node = element(
            "article",
            { className: `turn ${turn.role}` },
            heading,
            this.#body,
            this.#problem,
            this.#note,
            foot,
        );
        this.update(turn, "");
    }

    /** `status` is what happens while there is no text. */
    update(turn, status = "") {
        if (turn.role === "user") setText(this.#body, turn.content);
        else if (turn.content !== "" || status === "") this.#markdown.update(turn.content);
        this.node.classList.toggle("empty", turn.content === "");
        this.#copy.hidden = turn.content === "";
        showIfAny(this.#problem, turn.problem);
        showIfAny(this.#note, turn.note);
        setText(this.#facts, turn.facts ?? status);
    }

    /** Nothing but copying is possible while an answer comes. */
    set isBusy(isBusy) {
        for (const each of this.#buttons) each.disabled = isBusy && each !== this.#copy;
    }

    set isGrowing(isGrowing) {
        this.node.classList.toggle("growing", isGrowing);
    }

    #edit() {
        const area = element("textarea", { value: this.#turn.content, rows: 3, "aria-label": "Your message" });
        const cancel = element("button", { type: "button", textContent: "Cancel" });
        const save = element("button", { type: "submit", className: "primary", textContent: "Send" });
        const form = element("form", { className: "editing" }, area, element("div", {}, cancel, save));
        const close = () => {
            form.replaceWith(this.#body);
            this.#buttons[0].focus();
        };
        cancel.addEventListener("click", close);
        form.addEventListener("keydown", (event) => {
            if (event.key === "Escape") close();
            if (event.key === "Enter" && event.target === area && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                form.requestSubmit();
            }
        });
        form.addEventListener("submit", (event) => {
            event.preventDefault();
            if (area.value.trim() !== "") this.#actions.edit(this.#turn, area.value.trim());
        });
        this.#body.replaceWith(form);
        area.focus();
    }
}

function showIfAny(node, text) {
    node.hidden = text === null;
    setText(node, text ?? "");
}
