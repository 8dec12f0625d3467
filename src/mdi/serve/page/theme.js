// Loaded before the page is drawn, so that it never flashes in the other theme; not a module, because modules wait.

(() => {
    const root = document.documentElement;
    const NEXT = { system: "light", light: "dark", dark: "system" };

    function stored() {
        try {
            return localStorage.getItem("mdi.theme");
        } catch {
            return null;
        }
    }

    function apply(theme) {
        root.dataset.theme = theme in NEXT ? theme : "system";
    }

    apply(stored() ?? "system");

    addEventListener("DOMContentLoaded", () => {
        const switcher = document.getElementById("theme");
        const describe = () => {
            switcher.title = `Theme: ${root.dataset.theme}`;
            switcher.setAttribute("aria-label", switcher.title);
        };
        switcher.addEventListener("click", () => {
            apply(NEXT[root.dataset.theme]);
            describe();
            try {
                localStorage.setItem("mdi.theme", root.dataset.theme);
            } catch {
                // It holds until the page is left.
            }
        });
        describe();
    });
})();
