"""How a page begins: the words of its tab, and where the eye and the keyboard stand when it opens."""

from __future__ import annotations

import json

import streamlit as st

from pages import _ui

# Each page opens at its top with the heading in focus, wherever the one before was left: a browser knows nothing of a change
# of page within one document. The heading is waited for, since what is drawn before it may come later than this. What
# scrolls can be reached with the keyboard, whenever it is drawn: Streamlit's tables and code cannot. Where what had the
# focus is gone, as the button that mended the rows, the heading above has it, and nothing scrolls: else the keyboard would
# begin anew at the top of the document. What a button folds out is drawn at the end of the document too: the keyboard goes
# into it when it opens, and from its ends back to the button.
_AT_THE_TOP = """
<script>
(() => {
  const {page, language, kept} = %s;
  document.documentElement.lang = language;
  document.cookie = `${kept}=${language}; Path=/; Max-Age=31536000; SameSite=Lax`;
  const onto = heading => {
    heading.setAttribute('tabindex', '-1');
    heading.focus({preventScroll: true});
  };
  if (!window.tunebookWatch) {
    let waiting = false;
    document.addEventListener('pointerdown', () => { window.tunebookFocus = null; });
    document.addEventListener('focusin', ({target}) => {
      const above = target.closest('#stMain') && [...document.querySelectorAll('#stMain :is(h1, h2, h3)')].findLast(
        one => one.compareDocumentPosition(target) & Node.DOCUMENT_POSITION_FOLLOWING);
      // what a button opens is drawn at the end of the document, and belongs where the button is
      window.tunebookFocus = {target, above: above || window.tunebookFocus?.above};
    });
    const keep = () => {
      const {target, above} = window.tunebookFocus ?? {};
      if (!target || (target.isConnected && !target.disabled) || document.activeElement !== document.body) return;
      if (document.querySelector('[data-testid="stApp"]').dataset.testScriptState !== 'notRunning') return later();
      const heading = above?.isConnected ? above : document.querySelector('#stMain h1');
      if (heading) onto(heading);
    };
    const enter = () => {
      const inside = document.querySelector('[data-testid="stPopoverBody"]:not([data-entered])');
      const opener = document.activeElement;
      if (!inside || !opener.closest('[data-testid="stPopover"]')) return;
      inside.dataset.entered = 'true';
      inside.tabIndex = -1;
      inside.focus({preventScroll: true});
      inside.addEventListener('keydown', event => {
        if (event.key !== 'Tab' || !opener.isConnected) return;
        const all = [...inside.querySelectorAll('button, input, textarea, a[href], [tabindex="0"]')].filter(
          one => !one.disabled && one.checkVisibility());
        const ends = event.shiftKey ? [inside, all[0]] : all.length ? [all.at(-1)] : [inside];
        if (!ends.includes(event.target)) return;
        event.preventDefault();
        opener.focus();
      });
    };
    const reach = () => {
      waiting = false;
      keep();
      enter();
      for (const box of document.querySelectorAll('.stTable > div, .stCode pre, [data-testid="stHtml"] .scrolls'))
        if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    };
    const later = () => {
      if (!waiting) { waiting = true; setTimeout(reach, 300); }
    };
    window.tunebookWatch = new MutationObserver(later);
    window.tunebookWatch.observe(document.body, {childList: true, subtree: true});
  }
  if (window.tunebookPage === page) return;
  const first = window.tunebookPage === undefined;
  window.tunebookPage = page;
  window.tunebookFocus = null;
  if (!first && matchMedia('(max-width: 768px)').matches)
    document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
  let tries = 0;
  const look = () => {
    const main = document.getElementById('stMain');
    const heading = main?.querySelector('h1');
    if (!heading || heading.dataset.stale === 'true') {
      if (tries++ < 100) setTimeout(look, 50);
      return;
    }
    main.scrollTo({top: 0});
    if (document.activeElement === document.body || !main.contains(document.activeElement)) {
      onto(heading);
    }
  };
  look();
})();
</script>
"""


def page(path: str, title: str) -> None:
    """Begin a page: the title of its tab, and the script that brings the browser to its top and lets it keep the language
    that it shows, for an address that names none."""
    st.set_page_config(page_title=f"{title} · Tunebook" if path else title)
    st.session_state["has_heading"] = False
    facts = json.dumps({"page": path, "language": st.session_state["language"], "kept": _ui.LANGUAGE_COOKIE})
    with st.container(key="page_opens"):
        st.html(_AT_THE_TOP % facts.replace("<", "\\u003c"), unsafe_allow_javascript=True)
