// Copying. A page that came over plain HTTP from another machine is not given the clipboard of `navigator`.

import { button, element, setText } from "./dom.js";

const SHOWN_MS = 1500;

/** A button that copies what `text()` gives, and says whether it did. */
export function copyButton(text) {
    const copying = button("Copy", "copy", async () => {
        const label = copying.querySelector("span");
        setText(label, (await copy(text())) ? "Copied" : "Not copied");
        setTimeout(() => setText(label, "Copy"), SHOWN_MS);
    });
    return copying;
}

async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        return copyBySelection(text);
    }
}

function copyBySelection(text) {
    const focused = document.activeElement;
    const area = element("textarea", { value: text, className: "unseen", readOnly: true });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return copied;
}
