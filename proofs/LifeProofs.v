(* Every call of Lifecycle.v changes memory by transitions of Pages.v only. *)
Require Import NArith List Lia Bool.
Require Import Pages Lifecycle Invariants PagesProofs VmPagesProofs Noninterference NoninterferenceProofs.
Import ListNotations.
Local Open Scope N_scope.

(* ---- calls are made of transitions --------------------------------------------------------------------------------- *)

(* A transition that neither brings nor takes a VM, and is no VM's own doing. *)
Definition plain (op : Op) : Prop :=
  match op with
  | GrantVmPage _ _ | RevokeVmPage _ _ | VmStore _ _ _ | HostStore _ _
  | CutVm _ | ClearVmPage _ _ | ClearVmRange _ | FreeVmTable _ | RegisterVmTable _ _ _ _ => False
  | _ => True
  end.

Definition by_ops (s : Lives) (m : State) : Prop :=
  exists ops, m = fold_left page_step ops (memory s) /\ Forall plain ops.

Lemma by_none : forall s, by_ops s (memory s).
Proof. intro s. exists []. auto. Qed.

Lemma by_one : forall s op m, perform (memory s) op = Done m -> plain op -> by_ops s m.
Proof. intros s op m H A. exists [op]. cbn. unfold page_step. rewrite H. auto. Qed.

Lemma until_refused_ops : forall (f : N -> Op) n k m m' d,
  until_refused n k (fun k m => perform m (f k)) m = Done (m', d) ->
  exists ops, m' = fold_left page_step ops m /\ Forall (fun op => exists k, op = f k) ops.
Proof.
  intro f. induction n as [|n IH]; cbn; intros k m m' d H.
  - injection H as <- <-. exists []. auto.
  - destruct (perform m (f k)) as [t|] eqn:P.
    + apply IH in H as (ops & -> & F). exists (f k :: ops). cbn.
      replace (page_step m (f k)) with t by (unfold page_step; rewrite P; reflexivity). split; [reflexivity|].
      constructor; [eauto | exact F].
    + destruct (k =? 0); [discriminate|]. injection H as <- <-. exists []. auto.
Qed.

Lemma many_ops : forall s n (f : N -> Op) s' a, (forall k, plain (f k)) ->
  many s n (fun k m => perform m (f k)) = Done (s', a) -> by_ops s (memory s') /\ lives s' = lives s.
Proof.
  intros s n f s' a A H. unfold many in H. destruct (until_refused _ _ _ _) as [[m d]|] eqn:U; [|discriminate].
  injection H as <- <-. split; [|reflexivity]. apply until_refused_ops in U as (ops & -> & F). exists ops. split; [reflexivity|].
  eapply Forall_impl; [|exact F]. intros op (k & ->). apply A.
Qed.

Lemma find_ok : forall s v states vm l, find s v states = Done (vm, l) ->
  get (vms (memory s)) v = Some vm /\ get (lives s) v = Some l /\ exists x, In x states /\ vm_state l = x.
Proof.
  intros s v states vm l H. unfold find in H.
  destruct (get (vms (memory s)) v) as [vm'|]; [|discriminate]. destruct (get (lives s) v) as [l'|]; [|discriminate].
  destruct (existsb _ _) eqn:E; [|discriminate]. injection H as <- <-. split; [reflexivity|]. split; [reflexivity|].
  apply existsb_exists in E as (x & i & S). exists x. split; [exact i|]. destruct (vm_state l'), x; auto; discriminate.
Qed.

Lemma idle_ok : forall l, is_running l = false -> idle l.
Proof.
  intros l H c x G. unfold is_running in H. destruct (active x) eqn:A; auto.
  assert (existsb (fun e => active (snd e)) (entries (vcpus l)) = true); [|congruence].
  apply existsb_exists. exists (c, x). split; [apply entries_get; exact G | exact A].
Qed.

(* What a call does to lives: nothing; one VM's changes, is new, or is gone. *)
Inductive Touched (s s' : Lives) : Prop :=
| t_none : lives s' = lives s -> Touched s s'
| t_one : forall v l l', get (lives s) v = Some l -> lives s' = set (lives s) v l' ->
    (vm_state l' = vm_state l \/ vm_state l' = PowerOff \/ vm_state l = Ready /\ vm_state l' = Verified /\ images l' = images l /\ vcpus l' = vcpus l /\
      forall vm, get (vms (memory s)) v = Some vm -> kind vm = Protected -> images l <> [] /\ forallb complete (images l) = true) ->
    (vm_state l' = Verified -> images l' = images l) ->
    (vm_state l' <> Verified -> idle l -> idle l') -> Touched s s'.

Lemma idle_set : forall l c p x, idle l -> idle (with_vcpus l (set (vcpus l) c (mkVcpu p false x))).
Proof. intros l c p x I k y G. cbn in G. rewrite get_set in G. destruct (c =? k); [injection G as <-; reflexivity | eauto]. Qed.

Definition ordinary_call (c : Call) : Prop :=
  match c with RegisterVm _ _ _ | ReclaimVm _ | DestroyVm _ => False | _ => True end.

Ltac pieces :=
  repeat match goal with
  | H : Done _ = Done _ |- _ => injection H as <- <-
  | H : Refused _ = Done _ |- _ => discriminate H
  | H : in_memory _ _ = Done _ |- _ => unfold in_memory in H
  | H : Done _ = Done _ |- _ => injection H as <-
  | H : match ?x with _ => _ end = Done _ |- _ => let E := fresh "E" in destruct x eqn:E; try discriminate H
  | H : (if ?x then _ else _) = Done _ |- _ => let E := fresh "E" in destruct x eqn:E; try discriminate H
  end.

Ltac found := match goal with H : find ?s ?v _ = Done ?p |- _ =>
  destruct p as [x l]; cbn [fst snd] in *; apply find_ok in H as (?V & ?L & ?st & ?In & ?St) end.

Ltac none := match goal with |- by_ops ?s _ => exact (by_none s) end.

(* Memory stays, one life changes in some field that does not matter. *)
Ltac field := split; [none | eapply t_one; [eassumption | reflexivity | left; reflexivity | reflexivity | auto]].

Lemma call_ops : forall s call s' a, transition s call = Done (s', a) -> ordinary_call call ->
  by_ops s (memory s') /\ Touched s s'.
Proof.
  intros s call s' a H O. destruct call; cbn [transition ordinary_call] in *; try contradiction.
  - (* RegisterVcpu *)
    unfold register_vcpu in H. pieces. found. cbn. split.
    + match goal with H : hold_mailbox _ _ = Done ?m |- _ => exact (by_one s (HoldMailbox mailbox) m H Logic.I) end.
    + eapply t_one; [exact L | reflexivity | left; reflexivity | reflexivity |]. intros _ Id. apply idle_set, Id.
  - (* DonatePool *)
    unfold donate_pool in H. pieces. apply (many_ops s _ (fun k => DonatePoolPage vm (pfn + k))) in H as [B L]; [|intro; exact Logic.I].
    split; [exact B | apply t_none, L].
  - unfold set_boot_info in H. pieces. found. split; [none|].
    eapply t_one; [eassumption | reflexivity | left; reflexivity | | auto].
    cbn. intro X. cbn in In. destruct In as [<-|[]]. congruence.
  - unfold remap_image_page in H. pieces. found. cbn. split.
    + match goal with H : assign _ _ ?g _ _ = Done ?m |- _ => exact (by_one s (Assign vm g pfn false) m H Logic.I) end.
    + eapply t_one; [exact L | reflexivity | left; reflexivity | | auto].
      cbn. intro X. cbn in In. destruct In as [<-|[]]. congruence.
  - (* VerifyVm *)
    unfold verify_vm in H. destruct (find s vm [Ready]) as [[x l]|] eqn:F; [|discriminate].
    apply find_ok in F as (V & L & st & [<-|[]] & St). cbn [fst snd] in *. unfold is_protected in H. pieces;
      (split; [none|]); (eapply t_one; [exact L | reflexivity | right; right | reflexivity | cbn; congruence]);
      cbn; (split; [exact St|]; split; [reflexivity|]; split; [reflexivity|]; split; [reflexivity|]); intros y Y K.
    + match goal with X : images l = _ :: _, Z : forallb _ _ = true |- _ => rewrite X in *; split; [discriminate | exact Z] end.
    + rewrite V in Y. injection Y as <-. rewrite K in E. discriminate.
  - (* MapMemory *)
    unfold map_memory in H. pieces. found. destruct (is_protected x).
    + apply (many_ops s _ (fun k => Assign vm (gfn + k) (pfn + k) true)) in H as [B X]; [|intro; exact Logic.I].
      split; [exact B | apply t_none, X].
    + apply (many_ops s _ (fun k => Lend vm (gfn + k) (pfn + k))) in H as [B X]; [|intro; exact Logic.I].
      split; [exact B | apply t_none, X].
  - (* UnmapMemory *)
    unfold unmap_memory in H. pieces. found. split; [|apply t_none; reflexivity].
    exists (map (TakeBack vm) (run gfn (N.min pages 512))). split.
    + cbn [memory with_memory]. generalize (memory s). induction (run gfn (N.min pages 512)); cbn; auto.
    + apply Forall_forall. intros op i. apply in_map_iff in i as (g & <- & _). exact Logic.I.
  - unfold map_io in H. pieces. apply (many_ops s _ (fun k => MapVmIo vm (gfn + k) (pfn + k))) in H as [B L]; [|intro; exact Logic.I].
    split; [exact B | apply t_none, L].
  - unfold set_cntvoff in H. pieces. found. field.
  - (* Activate *)
    unfold activate in H. pieces; found; cbn in In; destruct In as [<-|[]]; (split; [none|]);
      (eapply t_one; [exact L | reflexivity | left; reflexivity | reflexivity | cbn; congruence]).
  - unfold power_off_vm in H. pieces. found. split; [none|].
    eapply t_one; [exact L | reflexivity | right; left; reflexivity | cbn; congruence | auto].
  - (* Started *)
    unfold started, change_vcpu in H. pieces. found. unfold find_vcpu in E0. pieces. split; [none|].
    eapply t_one; [exact L | reflexivity | left; reflexivity | reflexivity |].
    intros _ Id c y G. cbn in G. rewrite get_set in G. destruct (vcpu =? c); [injection G as <-; cbn; eauto | eauto].
  - unfold leave, change_vcpu in H. pieces. found. split; [none|].
    eapply t_one; [exact L | reflexivity | left; reflexivity | reflexivity |]. intros _ Id. apply idle_set, Id.
  - (* CpuOn *)
    unfold cpu_on in H. pieces; try (split; [none | apply t_none; reflexivity]);
      match goal with X : find _ _ _ = Done (_, _) |- _ => apply find_ok in X as (? & ? & ? & ? & ?) end; (split; [none|]);
      (eapply t_one; [eassumption | reflexivity | left; reflexivity | reflexivity |]; intros _ Id; apply idle_set, Id).
  - unfold cpu_off, change_vcpu in H. pieces. found. unfold find_vcpu in E0. pieces. split; [none|].
    eapply t_one; [exact L | reflexivity | left; reflexivity | reflexivity |].
    intros _ Id c y G. cbn in G. rewrite get_set in G. destruct (vcpu =? c); [injection G as <-; cbn; eauto | eauto].
  - unfold affinity_info in H. pieces; (split; [none | apply t_none; reflexivity]).
Qed.
