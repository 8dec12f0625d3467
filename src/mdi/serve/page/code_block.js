// A block of code, with a button that copies it.

import { copyButton } from "./clipboard.js";
import { element } from "./dom.js";

export function codeBlock(code, language) {
    const head = element(
        "figcaption",
        {},
        element("span", { textContent: language || "text" }),
        copyButton(() => code),
    );
    const text = element("code", { textContent: code });
    // It can be scrolled, so it can have the focus.
    const area = element("pre", { tabIndex: 0, role: "region", "aria-label": `Code: ${language || "text"}` }, text);
    return element("figure", { className: "code" }, head, area);
}
