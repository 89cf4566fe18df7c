(* Every transition of Pages.v keeps the invariants, first part: changes of one page's record. *)
Require Import NArith List Lia Bool.
Require Import Pages Invariants.
Import ListNotations.
Local Open Scope N_scope.

Lemma state_set : forall s p st q, state (set_pfn_state s p st) q = if p =? q then st else state s q.
Proof. intros. unfold state, set_pfn_state, with_pages; cbn. destruct st; keys; reflexivity. Qed.

(* Opens the definition of a transition that succeeded: one hypothesis for each check. *)
Ltac checks :=
  repeat match goal with
  | H : Done _ = Done _ |- _ => injection H as <- || injection H as <- <-
  | H : Refused _ = Done _ |- _ => discriminate H
  | H : match ?x with _ => _ end = Done _ |- _ => let E := fresh "E" in destruct x eqn:E; try discriminate H
  | H : (if ?x then _ else _) = Done _ |- _ => let E := fresh "E" in destruct x eqn:E; try discriminate H
  end.

Lemma expect_host_ok : forall s p u, expect_host s p = Done u -> p <> 0 /\ is_ram s p = true /\ state s p = Host.
Proof. unfold expect_host. intros. checks. apply N.eqb_neq in E. auto. Qed.

Lemma may_lend_ok : forall s p u, may_lend s p = Done u ->
  p <> 0 /\ is_ram s p = true /\ (state s p = Host \/ exists n, state s p = Lent n /\ n < 255).
Proof.
  unfold may_lend. intros. checks; apply N.eqb_neq in E; repeat split; auto.
  right. exists times. apply N.ltb_lt in E2. auto.
Qed.

Lemma live_ok : forall s v vm, live s v = Done vm -> get (vms s) v = Some vm /\ cut vm = false.
Proof. unfold live. intros. checks. auto. Qed.

Lemma of_kind_ok : forall s v k vm, of_kind s v k = Done vm -> get (vms s) v = Some vm /\ kind vm = k /\ cut vm = false.
Proof.
  unfold of_kind. intros. checks. apply live_ok in E as []. repeat split; auto.
  destruct (kind a), k; auto; discriminate.
Qed.

Lemma prepare_ok : forall vm g u, prepare vm g = Done u -> g < size vm /\ get (table vm) g = None.
Proof. unfold prepare. intros. checks. apply N.ltb_lt in E. auto. Qed.

(* The numbers of an invariant at page [q]. *)
Definition numbers (s : State) (q : N) : Prop :=
  loans s q = lent_times (state s q) /\ claims s q = core_times (state s q) /\ times_ok (state s q).

Lemma inv_numbers : forall s, PagesInv s -> forall q, numbers s q.
Proof. intros s I q. split; [apply I | split; apply I]. Qed.

(* A change of VM [v]'s table and pool, and of the sums over VMs. *)
Lemma total_vm : forall f s v vm vm', get (vms s) v = Some vm ->
  total f (set (vms s) v vm') + f vm = total f (vms s) + f vm'.
Proof. intros. rewrite <- (total_set f (vms s) v vm'). unfold at_key. rewrite H. reflexivity. Qed.
Lemma total_new : forall f s v vm', get (vms s) v = None ->
  total f (set (vms s) v vm') = total f (vms s) + f vm'.
Proof. intros. rewrite <- (total_set f (vms s) v vm'). unfold at_key. rewrite H. lia. Qed.

(* All that a transition changes in one page's record, one VM, and nothing of a second page or VM. The rest of the file shows for each transition
   that it is such a change. *)
Record Change (s s' : State) (p : N) : Prop := {
  c_ram : ram s' = ram s;
  c_windows : windows s' = windows s;
  c_state : forall q, q <> p -> state s' q = state s q;
  c_zero : p = 0 -> state s' p = Host;
  c_is_ram : state s' p <> Host -> is_ram s p = true;
  c_host : forall q, get (host s') q <> None -> q <> p -> get (host s) q <> None;
  c_host_p : get (host s') p <> None ->
     if is_ram s p then host_may_access (state s' p) = true else is_window s p = true;
  c_numbers : forall q, numbers s' q;
  c_iso : forall v vm g q, get (vms s') v = Some vm -> kind vm = Protected ->
    get (table vm) g = Some (Ram q) -> belongs (state s' q) v g;
  c_placed : forall q v g, belongs (state s' q) v g ->
    exists vm, get (vms s') v = Some vm /\ kind vm = Protected /\ get (table vm) g = Some (Ram q);
  c_vms : forall v vm, get (vms s') v = Some vm -> 1 <= v <= 127 /\
    (forall g l, get (table vm) g = Some l -> g < size vm) /\
    (forall g q, get (table vm) g = Some (Window q) -> is_ram s q = false);
}.

Lemma change_keeps : forall s s' p, PagesInv s -> Change s s' p -> PagesInv s'.
Proof.
  intros s s' p I C.
  assert (R : forall q, is_ram s' q = is_ram s q) by (intro; unfold is_ram; rewrite (c_ram _ _ _ C); reflexivity).
  assert (W : forall q, is_window s' q = is_window s q) by (intro; unfold is_window; rewrite (c_windows _ _ _ C); reflexivity).
  constructor.
  - destruct (N.eq_dec 0 p) as [<-|n]; [apply C; reflexivity | rewrite (c_state _ _ _ C _ n); apply I].
  - intro q. rewrite R. destruct (N.eq_dec q p) as [->|n]; [apply C | rewrite (c_state _ _ _ C _ n); apply I].
  - intros q H. rewrite R, W. destruct (N.eq_dec q p) as [->|n]; [apply (c_host_p _ _ _ C); exact H|].
    rewrite (c_state _ _ _ C _ n). apply (host_iso _ I). apply (c_host _ _ _ C); assumption.
  - intro q. apply (c_numbers _ _ _ C q).
  - intro q. apply (c_numbers _ _ _ C q).
  - intro q. apply (c_numbers _ _ _ C q).
  - apply C.
  - apply C.
  - intros v vm g q H H'. rewrite R. eapply C; eassumption.
  - intros v vm g l H H'. eapply C; eassumption.
  - intros v vm H. eapply C; eassumption.
Qed.

Ltac opened :=
  repeat unfold set_pfn_state, clear_pfn_host, scrub, write, set_vm, with_pages, with_own, with_host, with_vms,
    with_mailboxes, with_contents, with_table, with_given, with_cut, lend_once_more, lend_once_less,
    state, held, owned, loans, claims, numbers, is_ram, is_window in *;
  cbn [ram windows ia_bits pages own host vms mailboxes contents kind size table cut given] in *.

Lemma vm_loans_table : forall q vm t, vm_loans q (with_table vm t) =
  match kind vm with Ordinary => total (leaf_is q) t | Protected => 0 end.
Proof. reflexivity. Qed.

(* VM [v] gets a leaf at a free gfn, or loses the one there. *)
Lemma loans_set_leaf : forall q s v vm g l, get (vms s) v = Some vm -> get (table vm) g = None ->
  total (vm_loans q) (set (vms s) v (with_table vm (set (table vm) g l)))
  = total (vm_loans q) (vms s) + match kind vm with Ordinary => leaf_is q l | Protected => 0 end.
Proof.
  intros. pose proof (total_vm (vm_loans q) s v vm (with_table vm (set (table vm) g l)) H).
  rewrite vm_loans_table in H1. unfold vm_loans at 2 in H1.
  pose proof (total_set (leaf_is q) (table vm) g l). unfold at_key in H2. rewrite H0 in H2.
  destruct (kind vm); lia.
Qed.

Lemma loans_remove_leaf : forall q s v vm vm' g l, get (vms s) v = Some vm -> get (table vm) g = Some l ->
  kind vm' = kind vm -> table vm' = remove (table vm) g ->
  total (vm_loans q) (set (vms s) v vm')
  + match kind vm with Ordinary => leaf_is q l | Protected => 0 end = total (vm_loans q) (vms s).
Proof.
  intros. pose proof (total_vm (vm_loans q) s v vm vm' H).
  unfold vm_loans at 2 4 in H3. rewrite H1, H2 in H3.
  pose proof (total_remove (leaf_is q) (table vm) g). unfold at_key in H4. rewrite H0 in H4.
  destruct (kind vm); lia.
Qed.

Lemma claims_same : forall q s v vm vm', get (vms s) v = Some vm -> given vm' = given vm ->
  total (vm_claims q) (set (vms s) v vm') = total (vm_claims q) (vms s).
Proof. intros. pose proof (total_vm (vm_claims q) s v vm vm' H). unfold vm_claims at 2 4 in H1. rewrite H0 in H1. lia. Qed.

Lemma loans_same : forall q s v vm vm', get (vms s) v = Some vm -> kind vm' = kind vm -> table vm' = table vm ->
  total (vm_loans q) (set (vms s) v vm') = total (vm_loans q) (vms s).
Proof.
  intros. pose proof (total_vm (vm_loans q) s v vm vm' H). unfold vm_loans at 2 4 in H2. rewrite H0, H1 in H2. lia.
Qed.

(* Where a protected VM has a page, and the page's record, name each other: so two places are one. *)
Lemma belongs_once : forall st v g v' g', belongs st v g -> belongs st v' g' -> v = v' /\ g = g'.
Proof. destruct st; cbn; try tauto; intros ? ? ? ? [] []; subst; auto. Qed.

Lemma assign_keeps : forall s v g p zero s', PagesInv s -> assign s v g p zero = Done s' -> PagesInv s'.
Proof.
  intros s v g p zero s' I H. unfold assign in H. checks.
  apply of_kind_ok in E as (V & K & _). apply expect_host_ok in E0 as (Z & R & S). apply prepare_ok in E1 as (Sz & Free).
  set (s' := set_vm _ _ _).
  assert (St : forall q, state s' q = if p =? q then Private v g else state s q).
  { intro q. rewrite <- (state_set (clear_pfn_host s p)). unfold s'. destruct zero; reflexivity. }
  assert (Vs : vms s' = set (vms s) v (with_table a (set (table a) g (Ram p)))) by (unfold s'; destruct zero; reflexivity).
  apply (change_keeps s s' p I). constructor.
  - unfold s'; destruct zero; reflexivity.
  - unfold s'; destruct zero; reflexivity.
  - intros q n. rewrite St. keys; congruence.
  - congruence.
  - auto.
  - unfold s'; destruct zero; cbn; intros; keys; congruence.
  - unfold s'; destruct zero; cbn; intros; keys; congruence.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St, Vs.
    rewrite (loans_set_leaf q _ _ _ _ _ V Free), K, (claims_same q _ _ _ (with_table a _) V eq_refl).
    replace (held s' q) with (held s q) by (unfold s'; destruct zero; reflexivity).
    replace (owned s' q) with (owned s q) by (unfold s'; destruct zero; reflexivity).
    keys; [rewrite S in L, C, T; cbn in *; lia | rewrite N.add_0_r; auto].
  - intros v' vm' g' q. rewrite Vs, St, get_set. intros G K' T. destruct (N.eqb_spec p q) as [<-|n].
    + destruct (N.eqb_spec v v') as [E|].
      * subst v'. injection G as <-. cbn in T. rewrite get_set in T. destruct (N.eqb_spec g g') as [->|]; [cbn; auto|].
        pose proof (vm_iso _ I _ _ _ _ V K T) as B. rewrite S in B. destruct B.
      * pose proof (vm_iso _ I _ _ _ _ G K' T) as B. rewrite S in B. destruct B.
    + destruct (N.eqb_spec v v') as [<-|]; [|exact (vm_iso _ I _ _ _ _ G K' T)].
      injection G as <-. cbn in T. rewrite get_set in T.
      destruct (N.eqb_spec g g') as [<-|]; [congruence | exact (vm_iso _ I _ _ _ _ V K T)].
  - intros q v' g'. rewrite St, Vs. destruct (N.eqb_spec p q) as [<-|n]; intro B.
    + destruct B as [Ev Eg]. subst v' g'. eexists. rewrite get_set, N.eqb_refl. split; [reflexivity|]. cbn.
      rewrite get_set, N.eqb_refl. auto.
    + apply (placed _ I) in B as (vm & G & K' & T). rewrite get_set. destruct (N.eqb_spec v v') as [E|].
      * subst v'. rewrite V in G. injection G as <-. eexists. split; [reflexivity|]. cbn. split; [exact K|].
        rewrite get_set. destruct (N.eqb_spec g g') as [E|]; [congruence | exact T].
      * exists vm. auto.
  - intros v' vm'. rewrite Vs. intro G. keys.
    + injection G as <-. split; [eapply vm_ids; eauto|]. cbn. split; intros; keys; try discriminate; auto.
      * eapply in_size; eauto.
      * eapply windows_no_ram; eauto.
    + split; [eapply vm_ids; eauto|]. split; intros; [eapply in_size | eapply windows_no_ram]; eauto.
Qed.

(* ---- changes that leave every VM's table as it is ---------------------------------------------------------------- *)

Definition same_tables (s s' : State) : Prop :=
  forall v, match get (vms s) v, get (vms s') v with
            | Some vm, Some vm' => kind vm' = kind vm /\ size vm' = size vm /\ table vm' = table vm
            | None, None => True
            | _, _ => False
            end.

Lemma same_vms : forall s s', vms s' = vms s -> same_tables s s'.
Proof. intros s s' E v. rewrite E. destruct (get (vms s) v); auto. Qed.

Lemma same_vm : forall s s' v vm vm', get (vms s) v = Some vm -> vms s' = set (vms s) v vm' ->
  kind vm' = kind vm -> size vm' = size vm -> table vm' = table vm -> same_tables s s'.
Proof.
  intros s s' v vm vm' G E K Z T w. rewrite E, get_set. destruct (N.eqb_spec v w) as [<-|].
  - rewrite G. auto.
  - destruct (get (vms s) w); auto.
Qed.

Lemma tables_change : forall s s' p, PagesInv s -> same_tables s s' ->
  ram s' = ram s -> windows s' = windows s ->
  (forall q, q <> p -> state s' q = state s q) ->
  (forall v g, belongs (state s p) v g <-> belongs (state s' p) v g) ->
  (p = 0 -> state s' p = Host) -> (state s' p <> Host -> is_ram s p = true) ->
  (forall q, get (host s') q <> None -> q <> p -> get (host s) q <> None) ->
  (get (host s') p <> None -> if is_ram s p then host_may_access (state s' p) = true else is_window s p = true) ->
  (forall q, numbers s' q) -> Change s s' p.
Proof.
  intros s s' p I TT A B St Bp Z Is H Hp Nu.
  assert (Bq : forall q v g, belongs (state s q) v g <-> belongs (state s' q) v g).
  { intros q v g. destruct (N.eq_dec q p) as [->|n]; [apply Bp | rewrite (St _ n); tauto]. }
  constructor; auto.
  - intros v vm g q G K T. specialize (TT v). rewrite G in TT. destruct (get (vms s) v) eqn:G'; [|tauto].
    destruct TT as (Ek & _ & Et). apply Bq. apply (vm_iso _ I _ _ _ _ G'); congruence.
  - intros q v g B'. apply Bq in B'. apply (placed _ I) in B' as (vm & G & K & T). specialize (TT v). rewrite G in TT.
    destruct (get (vms s') v) as [vm'|]; [|tauto]. destruct TT as (Ek & _ & Et). exists vm'. repeat split; congruence.
  - intros v vm G. specialize (TT v). rewrite G in TT. destruct (get (vms s) v) eqn:G'; [|tauto].
    destruct TT as (Ek & Es & Et). rewrite Es, Et. split; [eapply vm_ids; eauto|].
    split; intros; [eapply in_size | eapply windows_no_ram]; eauto.
Qed.

(* Nobody counts differently. *)
Lemma same_numbers : forall s s' p st, PagesInv s ->
  (forall q, state s' q = if p =? q then st else state s q) ->
  lent_times st = lent_times (state s p) -> core_times st = core_times (state s p) -> times_ok st ->
  vms s' = vms s -> mailboxes s' = mailboxes s -> own s' = own s -> forall q, numbers s' q.
Proof.
  intros s s' p st I St L C T V M O q. destruct (inv_numbers s I q) as (L' & C' & T').
  unfold numbers, loans, claims, held, owned in *. rewrite V, M, O, St.
  destruct (N.eqb_spec p q) as [<-|]; [rewrite L, C; auto | auto].
Qed.

Lemma not_host : forall s p, PagesInv s -> state s p <> Host -> p <> 0 /\ is_ram s p = true.
Proof. intros s p I H. split; [|apply I; exact H]. intros ->. apply H, I. Qed.

Lemma map_page_host_keeps : forall s p s', PagesInv s -> map_page_host s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. apply (change_keeps s s' p I).
  assert (E : s' = with_host s (set (host s) p tt) /\
              (if is_ram s p then host_may_access (state s p) = true else is_window s p = true)).
  { unfold map_page_host in H. checks; auto. }
  destruct E as [-> A].
  apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros ->. apply I.
  - apply I.
  - cbn. intros q G n. rewrite get_set in G. destruct (N.eqb_spec p q); congruence.
  - apply (inv_numbers s I).
Qed.

Lemma forget_keeps : forall s p, PagesInv s -> PagesInv (forget_page_host s p).
Proof.
  intros s p I. apply (change_keeps s _ p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros ->. apply I.
  - apply I.
  - cbn. intros q G n. rewrite get_remove in G. destruct (N.eqb_spec p q); congruence.
  - cbn. rewrite get_remove, N.eqb_refl. congruence.
  - apply (inv_numbers s I).
Qed.

Lemma contents_keep : forall s c, PagesInv s -> PagesInv (with_contents s c).
Proof. intros s c I. destruct I. constructor; assumption. Qed.

Lemma host_store_keeps : forall s p x s', PagesInv s -> host_store s p x = Done s' -> PagesInv s'.
Proof.
  intros s p x s' I H. unfold host_store in H. checks.
  destruct (is_ram s p); [apply contents_keep|]; eapply map_page_host_keeps; eauto.
Qed.

Lemma vm_store_keeps : forall s v g x s', PagesInv s -> vm_store s v g x = Done s' -> PagesInv s'.
Proof. intros s v g x s' I H. unfold vm_store in H. checks. apply contents_keep, I. Qed.

Lemma assign_page_to_core_keeps : forall s p s', PagesInv s -> assign_page_to_core s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold assign_page_to_core in H. checks. apply expect_host_ok in E as (Z & R & S).
  set (s' := with_own _ _).
  assert (St : forall q, state s' q = if p =? q then Core else state s q)
    by (intro; apply (state_set (clear_pfn_host s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - congruence.
  - cbn. intros q G n. rewrite get_remove in G. destruct (N.eqb_spec p q); congruence.
  - cbn. rewrite get_remove, N.eqb_refl. congruence.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    assert (O : owned s' q = if p =? q then 1 else owned s q)
      by (unfold owned; cbn; rewrite get_set; destruct (p =? q); reflexivity).
    rewrite O. change (held s' q) with (held s q). change (vms s') with (vms s).
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

Lemma return_page_to_host_keeps : forall s p s', PagesInv s -> return_page_to_host s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold return_page_to_host in H. checks.
  assert (S : state s p = Core).
  { pose proof (core_count _ I p) as C. unfold claims, owned in C. rewrite E0 in C. destruct (state s p); cbn [core_times] in C; auto; lia. }
  set (s' := with_own _ _).
  assert (St : forall q, state s' q = if p =? q then Host else state s q) by (intro; apply (state_set (scrub s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - intros. rewrite St, N.eqb_refl. reflexivity.
  - intro G. rewrite St, N.eqb_refl, E. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    assert (O : owned s' q = if p =? q then 0 else owned s q)
      by (unfold owned; cbn; rewrite get_remove; destruct (p =? q); reflexivity).
    rewrite O. change (held s' q) with (held s q). change (vms s') with (vms s).
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; unfold owned in C; rewrite E0 in C; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

Lemma donate_pool_page_keeps : forall s v p s', PagesInv s -> donate_pool_page s v p = Done s' -> PagesInv s'.
Proof.
  intros s v p s' I H. unfold donate_pool_page in H. checks.
  apply live_ok in E as (V & _). apply expect_host_ok in E0 as (Z & R & S).
  set (s' := set_vm _ _ _).
  assert (St : forall q, state s' q = if p =? q then Core else state s q)
    by (intro; apply (state_set (clear_pfn_host s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply (same_vm s s' v a (with_given a (p :: given a))); auto.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - congruence.
  - cbn. intros q G n. rewrite get_remove in G. destruct (N.eqb_spec p q); congruence.
  - cbn. rewrite get_remove, N.eqb_refl. congruence.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_given a (p :: given a))).
    rewrite (loans_same q s v a (with_given a (p :: given a)) V eq_refl eq_refl).
    pose proof (total_vm (vm_claims q) s v a (with_given a (p :: given a)) V) as TC.
    unfold vm_claims at 2 4 in TC. cbn [given with_given count] in TC.
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

Lemma own_page_ok : forall s v g p n, PagesInv s -> own_page s v g = Done (p, n) ->
  state s p = Private v g /\ n = 0 \/ state s p = Shared v g n.
Proof.
  intros s v g p n I H. unfold own_page in H. checks;
    apply of_kind_ok in E as (V & K & _); pose proof (vm_iso _ I _ _ _ _ V K E0) as B;
    match goal with X : state s _ = _ |- _ => rewrite X in B end; destruct B; subst; auto.
Qed.

Lemma record_keeps : forall s s' p st, PagesInv s -> (forall q, state s' q = if p =? q then st else state s q) ->
  (exists v g, belongs (state s p) v g /\ belongs st v g) -> times_ok st ->
  ram s' = ram s -> windows s' = windows s -> vms s' = vms s -> mailboxes s' = mailboxes s -> own s' = own s ->
  (forall q, get (host s') q <> None -> get (host s) q <> None) ->
  (get (host s') p <> None -> host_may_access st = true) -> PagesInv s'.
Proof.
  intros s s' p st I St (v & g & B & B') T A1 A2 A3 A4 A5 H Hp.
  assert (NH : state s p <> Host) by (intro X; rewrite X in B; exact B).
  apply (change_keeps s s' p I). apply tables_change; auto.
  - apply same_vms. assumption.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros a b. rewrite St, N.eqb_refl. split; intro X;
      [destruct (belongs_once _ _ _ _ _ X B) | destruct (belongs_once _ _ _ _ _ X B')]; subst; assumption.
  - intros ->. destruct NH. apply I.
  - intros _. apply I, NH.
  - intro G. rewrite St, N.eqb_refl. destruct (not_host s p I NH) as [_ ->]. auto.
  - eapply same_numbers; eauto; destruct (state s p), st; cbn in *; tauto.
Qed.

Lemma grant_keeps : forall s v g s', PagesInv s -> grant_vm_page s v g = Done s' -> PagesInv s'.
Proof.
  intros s v g s' I H. unfold grant_vm_page in H. checks. destruct a as [p n]. cbn in *. apply N.ltb_lt in E0.
  pose proof (own_page_ok _ _ _ _ _ I E) as O.
  apply (record_keeps s _ p (Shared v g (n + 1)) I); auto; try reflexivity.
  - intro. apply state_set.
  - exists v, g. destruct O as [[-> _]| ->]; cbn; auto.
  - cbn. lia.
Qed.

Lemma revoke_keeps : forall s v g s', PagesInv s -> revoke_vm_page s v g = Done s' -> PagesInv s'.
Proof.
  intros s v g s' I H. unfold revoke_vm_page in H. destruct (own_page s v g) as [[p n]|] eqn:E; try discriminate. cbn in H.
  destruct (N.eqb_spec n 0); try discriminate.
  destruct (own_page_ok _ _ _ _ _ I E) as [[_ X]|S]; [contradiction|].
  pose proof (counts_ok _ I p) as T. rewrite S in T. cbn in T.
  destruct (N.eqb_spec n 1); injection H as <-.
  - apply (record_keeps s _ p (Private v g) I); auto; try reflexivity.
    + intro. apply (state_set (clear_pfn_host s p)).
    + exists v, g. rewrite S. cbn. auto.
    + cbn. intros q G. rewrite get_remove in G. destruct (p =? q); congruence.
    + cbn. rewrite get_remove, N.eqb_refl. congruence.
  - apply (record_keeps s _ p (Shared v g (n - 1)) I); auto; try reflexivity.
    + intro. apply state_set.
    + exists v, g. rewrite S. cbn. auto.
    + cbn. lia.
Qed.
